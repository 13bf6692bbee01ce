"""What keeps a policy near its reference."""
