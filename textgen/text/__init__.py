"""Text becomes tokens.

- `sources`: where a corpus comes from, a class a kind: files, a folder in Hub layout, a Hub dataset, Python's docs.
- `corpus`: freezes the text in data/raw, a read-only parquet file a split, and reads it back.
- `documents`: which rows are one document, and the tokens, words and bytes of each document.
- `tokenizer`: GPT-2's BPE, a BPE trained on the text, or the words of the text.
- `tokens`: the token ids of a split as one tensor in data/processed, and the blocks cut from it.
"""
