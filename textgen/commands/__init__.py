"""`textgen …`, a command a file: its arguments and what it prints. `arguments` has what several of them share."""
