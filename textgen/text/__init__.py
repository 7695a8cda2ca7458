"""Text becomes tokens: the sources of a corpus, its frozen form, its documents, the tokenizers, the token streams."""
