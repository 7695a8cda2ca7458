"""Text becomes tokens.

- `sources`: where a corpus comes from, a class a kind: files, a folder in Hub layout, a Hub dataset, and
  Python's docstrings (`python_docs`).
- `local_files`, `readers`: which files a value of `data.files` names, and how a file of each kind is read.
- `documents`: how plain text is cut into documents, which rows begin one, and the content by which one is known.
- `splitting`: the documents of local files, and which split each is in. `freezing`: the parquet files of a split.
- `corpus`: the frozen text in data/raw.
- `overlap`, `report`: how much of the held-out text stands in train, and what else `textgen data` shows.
- `tokenizer`, `encoding`: GPT-2's BPE, a BPE trained on the text, or its words; long documents in bounded memory.
- `stream`, `tokens`: the token ids of a text as one tensor, and those of each split in data/processed.

Local files. A file of plain text is a document; `data.document` can say paragraphs, lines or a separator. A row of a
table is a document. A file is read as what its ending says: .txt, .md, .jsonl, .ndjson, .csv, .tsv or .parquet, each
also with .gz, .bz2, .xz or .zst. In folders, hidden entries and other endings are left out and counted. One set of
files is split by a salted hash of each document's words, so a document stays in its split whatever is added or renamed.
Long files are cut into documents only while validation or test would hold fewer than 20; when that changes, their
documents are new ones. Of documents with the same words, one is kept. Splits that you give stay as they are; how much
of them stands in train is measured.
"""
