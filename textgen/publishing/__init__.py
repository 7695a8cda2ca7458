"""A checkpoint becomes a version, and perhaps the champion: the version in use."""
