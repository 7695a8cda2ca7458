"""Local files become the splits of a frozen corpus: which split a document is in, copies, and the parquet files."""

import difflib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from textgen.errors import InputError
from textgen.files import sha256_file
from textgen.sections import SPLITS, DataConfig
from textgen.terminal import brief
from textgen.text.documents import (
    CUT_WORDS,
    LONG_WORDS,
    WAYS_TO_CUT,
    Content,
    Part,
    cut_text,
    mark_rows,
    parts_of,
    size_in_words,
)
from textgen.text.local_files import LocalText, SplitFile
from textgen.text.readers import check_row, read_table, read_text

if TYPE_CHECKING:
    import pyarrow
    from datasets import DatasetDict

FEW_DOCUMENTS = 20  # of validation or test, below which long files are cut
TOO_FEW_DOCUMENTS = 5  # below which they are cut into shorter documents: the gate decides on no fewer
CUTS = (CUT_WORDS, CUT_WORDS // 2, CUT_WORDS // 4)  # the words of a document of a long file, as tried in turn
READ_ROWS = 10_000
WRITE_CHARACTERS = 1 << 22  # of text that are one row group
HASHES = 2**64


class RawSplit(BaseModel):
    """One split of the frozen text: a parquet file with a `text` column, and what it holds.

    Of local files, a document is in one or more rows of the file, the first of which `begins` it; a second file lists
    the documents. `rows` counts what is tokenized as a whole: documents, or the rows of tables whose splits are given.
    Of other sources, it counts the rows, and `documents` is null.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    sha256: str
    bytes: int  # of the file
    rows: int
    words: int  # separated by whitespace
    text_bytes: int  # of the text in UTF-8
    documents: int | None = None
    documents_file: str | None = None  # the file, place there, content's hash, words and bytes of each document
    documents_sha256: str | None = None


class Reading(BaseModel):
    """What was read of local files, and what was left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, int]  # by kind
    left_out: dict[str, int] = {}  # of folders, by reason
    empty: int = 0  # documents without a word
    copies: int = 0  # documents whose words another document has, kept once
    cut: bool = False  # whether long files were cut,
    cut_words: int = CUT_WORDS  # and into documents of about how many words
    by_row: bool = False  # whether each row is tokenized on its own: of tables whose splits are given


@dataclass(frozen=True)
class Documents:
    """The documents of files, in order."""

    files: Sequence[SplitFile]
    data: DataConfig
    cut_words: int | None = None  # how long the documents of a long file are; null: each file is one

    @property
    def by_row(self) -> bool:
        """Whether the files are tables of given splits, whose rows are kept as they are."""
        return all(one.file.has_rows and one.split is not None for one in self.files)

    def parts(self) -> Iterator[tuple[SplitFile, Part]]:
        """Yield each part with its file. A file without any, of 0 bytes for one, is a document without a word.

        Raises:
            InputError: a file cannot be read as what its ending says, or was changed since it was hashed.
        """
        for one in self.files:
            if one.file.has_rows:
                rows = mark_rows(read_table(one.file, one.sha256, self.data.text_column))
                found = rows if self.by_row else chain.from_iterable(parts_of(*row) for row in rows)
            else:
                pieces = read_text(one.file, one.sha256)
                found = cut_text(pieces, self.data.document, self.cut_words)
            any_part = False
            for part in found:
                any_part = True
                yield one, part
            if not any_part:
                yield one, Part("", True)


@dataclass
class Census:
    """The documents of files, each by its content's hash, words, and split: arrays [D]."""

    hashes_D: np.ndarray
    words_D: np.ndarray
    splits_D: np.ndarray  # an index of SPLITS, or one of the two below
    long_files: bool  # whether a file of plain text is longer than LONG_WORDS,
    cut_files: bool  # and whether one holds several documents
    EMPTY, COPY = 100, 101

    def count(self, split_or_reason: int) -> int:
        """Return how many documents are in a split, or were left out for a reason."""
        return int((self.splits_D == split_or_reason).sum())

    @property
    def held_out(self) -> int:
        """The documents of validation or of test, whichever has fewer."""
        return min(self.count(SPLITS.index(split)) for split in ("validation", "test"))


def freeze_files(text: LocalText, data: DataConfig, folder: Path) -> tuple[dict[str, RawSplit], Reading]:
    """Write the splits of local files, and return them and what was read.

    Where validation or test would hold fewer than FEW_DOCUMENTS, long files are cut into documents of CUT_WORDS; where
    that leaves fewer than TOO_FEW_DOCUMENTS, into shorter ones, if that gives more.

    Raises:
        InputError: a file cannot be read or was changed meanwhile, no file has the separator, or a split is empty.
    """
    documents = Documents(text.files, data)
    census = take_census(documents)
    check_separator(documents, census)
    if data.document == "file" and census.long_files and census.held_out < FEW_DOCUMENTS:
        tried: list[tuple[Documents, Census]] = []
        while len(tried) < len(CUTS) and (not tried or tried[-1][1].held_out < TOO_FEW_DOCUMENTS):
            shorter = replace(documents, cut_words=CUTS[len(tried)])
            tried.append((shorter, take_census(shorter)))
        documents, census = max(tried, key=lambda one: one[1].held_out)  # the first where several are as good
    check_splits(census, data)
    splits = write_splits(documents, census, folder)
    kinds = Counter(one.file.kind for one in text.files)
    return splits, Reading(
        files=kinds, left_out=dict(text.left_out), empty=census.count(Census.EMPTY),
        copies=census.count(Census.COPY), cut=documents.cut_words is not None,
        cut_words=documents.cut_words or CUT_WORDS, by_row=documents.by_row,
    )  # fmt: skip


def take_census(documents: Documents) -> Census:
    """Read all documents and return in which split each of them is."""
    hashes, words, given = array("Q"), array("q"), array("b")
    long_files, cut_files, size, content, file = False, False, 0.0, Content(), None

    def note() -> None:
        hashes.append(content.hash)
        words.append(content.words)
        given.append(SPLITS.index(file.split) if file is not None and file.split is not None else -1)

    for one, part in documents.parts():
        if part.begins:
            if file is not None:
                note()
            cut_files = cut_files or (one is file and not one.file.has_rows)
            file, content, size = one, Content(), 0.0
        content.add(part.text)
        if not long_files and not one.file.has_rows:
            size += size_in_words(part.text)
            long_files = size > LONG_WORDS
    if file is not None:
        note()
    hashes_D, words_D = np.frombuffer(hashes, np.uint64), np.frombuffer(words, np.int64)
    splits_D = np.frombuffer(given, np.int8).astype(np.uint8)
    if documents.files and documents.files[0].split is None:
        splits_D = _own_split(hashes_D, documents.data)
    splits_D[words_D == 0] = Census.EMPTY
    return Census(hashes_D, words_D, splits_D, long_files, cut_files)


def _own_split(hashes_D: np.ndarray, data: DataConfig) -> np.ndarray:
    """Return the split of each document by its content's hash: test below a threshold, validation above another.

    A larger fraction moves documents out of train alone. Of copies, the first is kept.
    """
    splits_D = np.full(len(hashes_D), SPLITS.index("train"), np.uint8)
    splits_D[hashes_D >= np.uint64(int((1 - data.validation_fraction) * HASHES))] = SPLITS.index("validation")
    splits_D[hashes_D < np.uint64(int(data.test_fraction * HASHES))] = SPLITS.index("test")
    _, first = np.unique(hashes_D, return_index=True)
    is_copy_D = np.ones(len(hashes_D), bool)
    is_copy_D[first] = False
    splits_D[is_copy_D] = Census.COPY
    return splits_D


def check_separator(documents: Documents, census: Census) -> None:
    """Check that a separator between documents is in a file of plain text, if there are such files.

    Raises:
        InputError: it is in none, as where a word that says how to cut is misspelt.
    """
    document = documents.data.document
    has_plain_text = any(not one.file.has_rows for one in documents.files)
    if document in WAYS_TO_CUT or census.cut_files or not has_plain_text or not census.words_D.any():
        return
    hint = ""
    if close := difflib.get_close_matches(document.strip().lower(), WAYS_TO_CUT, n=1):
        hint = f"; did you mean {close[0]}?"
    elif "\\" in document:
        hint = "; for a line end write \\n in double quotes: 'data.document=\"\\n\\n\"'"
    raise InputError(f"data.document={brief(document)}: no file has this separator between documents{hint}")


def check_splits(census: Census, data: DataConfig) -> None:
    """Check that each split has a document.

    Raises:
        InputError: one has none; the message says how many documents are missing.
    """
    kept = sum(census.count(number) for number in range(len(SPLITS)))
    for number, split in enumerate(SPLITS):
        if census.count(number) > 0:
            continue
        if data.files is None:
            raise InputError(f"data.path={data.path!r}: the {split} split is missing or empty")
        if isinstance(data.files, dict):
            raise InputError(f"data.files.{split}: the split is empty")
        if kept == 0:
            raise InputError("data.files: the files hold no text")
        fractions = {"validation": data.validation_fraction, "test": data.test_fraction}
        fraction = fractions.get(split, 1 - sum(fractions.values()))
        named = " and ".join(
            f"data.{name}_fraction={value:g}" for name, value in fractions.items() if split in (name, "train")
        )
        raise InputError(
            f"data.files: the {split} split is empty: {kept} document{'s' * (kept != 1)} and none of them in it; with "
            f"{named} about {round(1 / fraction):,} more are needed"
        )


def write_splits(documents: Documents, census: Census, folder: Path) -> dict[str, RawSplit]:
    """Write each split's text and the list of its documents, and return what they hold."""
    split_of = census.splits_D.tobytes()
    with ExitStack() as stack:
        writers = [stack.enter_context(SplitWriter(folder, split, documents.by_row)) for split in SPLITS]
        writer, file, number, place = None, None, -1, 0
        for one, part in documents.parts():
            if part.begins:
                number, place, file = number + 1, place + 1 if one is file else 1, one
                known = number < len(split_of)  # but of a file that was changed since, of which its reader will tell
                writer = writers[split_of[number]] if known and split_of[number] < len(SPLITS) else None
            if writer is not None:
                writer.add(part, one.file.name, place)
    return {split: writer.written for split, writer in zip(SPLITS, writers, strict=True)}


def text_schema() -> "pyarrow.Schema":
    """Return the columns of a split's text."""
    import pyarrow

    return pyarrow.schema({"text": pyarrow.string(), "begins": pyarrow.bool_()})


def documents_schema() -> "pyarrow.Schema":
    """Return the columns of the list of a split's documents: where each is from, its content's hash, and its size."""
    import pyarrow

    return pyarrow.schema({
        "file": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), "number": pyarrow.int32(),
        "hash": pyarrow.uint64(), "words": pyarrow.int64(), "bytes": pyarrow.int64(),
    })  # fmt: skip


class SplitWriter:
    """Writes the parquet files of a split, WRITE_CHARACTERS at a time."""

    def __init__(self, folder: Path, split: str, by_row: bool) -> None:
        self.by_row = by_row
        self.path, self.documents_path = folder / f"{split}.parquet", folder / f"{split}.documents.parquet"
        self.documents = self.rows = self.words = self.text_bytes = self._size = 0
        self._texts: list[str] = []
        self._begins: list[bool] = []
        self._rows: list[dict[str, object]] = []
        self._content, self._name = Content(), ("", 0)

    def __enter__(self) -> Self:
        import pyarrow.parquet

        self._text = pyarrow.parquet.ParquetWriter(self.path, text_schema(), use_dictionary=False)
        self._list = pyarrow.parquet.ParquetWriter(self.documents_path, documents_schema())
        return self

    def add(self, part: Part, file: str, number: int) -> None:
        """Add a part of the document that is the `number`th of `file`."""
        if part.begins:
            self._end_document()
            self._content, self._name = Content(), (file, number)
            self.documents += 1
        self.rows += 1
        self._content.add(part.text)
        self._texts.append(part.text)
        self._begins.append(part.begins)
        self._size += len(part.text)
        if self._size >= WRITE_CHARACTERS:
            self._write()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._end_document()
            self._write()
        self._text.close()
        self._list.close()
        if kind is None:
            for path in (self.path, self.documents_path):
                path.chmod(0o444)
            self.written = RawSplit(
                file=self.path.name, sha256=sha256_file(self.path), bytes=self.path.stat().st_size,
                rows=self.rows if self.by_row else self.documents,
                words=self.words, text_bytes=self.text_bytes, documents=self.documents,
                documents_file=self.documents_path.name, documents_sha256=sha256_file(self.documents_path),
            )  # fmt: skip

    def _end_document(self) -> None:
        if self.documents:
            content, (file, number) = self._content, self._name
            self.words, self.text_bytes = self.words + content.words, self.text_bytes + content.bytes
            self._rows.append({
                "file": file, "number": number, "hash": content.hash, "words": content.words, "bytes": content.bytes,
            })  # fmt: skip

    def _write(self) -> None:
        import pyarrow

        table = pyarrow.table({"text": self._texts, "begins": self._begins}, schema=text_schema())
        self._text.write_table(table)
        self._list.write_table(pyarrow.Table.from_pylist(self._rows, schema=documents_schema()))
        self._texts, self._begins, self._rows, self._size = [], [], [], 0


def freeze_dataset(dataset: "DatasetDict", folder: Path) -> dict[str, RawSplit]:
    """Write each split of a dataset as a read-only parquet file, a row as it is, and return what they hold.

    Raises:
        InputError: a split or the column `text` is missing, a split is empty, or a row is no text.
    """
    from datasets import Value

    if missing := [split for split in SPLITS if split not in dataset]:
        raise InputError(f"data: no {' and no '.join(missing)} split; there are {', '.join(dataset)}")
    splits: dict[str, RawSplit] = {}
    for split in SPLITS:
        rows = dataset[split]
        if "text" not in rows.column_names:
            raise InputError(f"data: the {split} split has no column `text`; it has {', '.join(rows.column_names)}")
        if rows.features["text"] not in (Value("string"), Value("large_string")):
            kind = getattr(rows.features["text"], "dtype", "no plain column")
            raise InputError(f"data: the {split} split, row 1: `text` is {kind}; a string is needed")
        path = folder / f"{split}.parquet"
        rows.select_columns("text").to_parquet(path)
        number = words = text_bytes = 0
        for batch in rows.select_columns("text").iter(READ_ROWS):
            for text in batch["text"]:
                number += 1
                check_row(text, f"data: the {split} split, row {number}", "text")
                words += len(text.split())
                text_bytes += len(text.encode())
        if text_bytes == 0:
            raise InputError(f"data: the {split} split is empty")
        path.chmod(0o444)
        splits[split] = RawSplit(
            file=path.name, sha256=sha256_file(path), bytes=path.stat().st_size, rows=len(rows), words=words,
            text_bytes=text_bytes,
        )  # fmt: skip
    return splits
