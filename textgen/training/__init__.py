"""Tokens become a checkpoint: the loop, what it saves, and the processes that share it."""
