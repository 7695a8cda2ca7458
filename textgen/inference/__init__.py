"""A prompt becomes text."""
