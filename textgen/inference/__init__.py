"""A prompt becomes text: `generate` draws token after token."""
