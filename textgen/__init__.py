"""A decoder-only Transformer language model: its text, its training, its measure, its versions."""

__version__ = "0.1.0"
