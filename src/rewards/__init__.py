"""Pictures and prompts in, numbers out."""
