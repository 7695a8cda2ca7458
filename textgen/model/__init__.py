"""The network, its loss and its devices; the folder that transformers opens, and where a model is found by name."""
