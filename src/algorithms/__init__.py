"""What a row is worth and what it costs, an algorithm a module."""
