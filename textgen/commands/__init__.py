"""`textgen …`, a command a file: its arguments and what it prints."""
