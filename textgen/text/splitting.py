"""The documents of local files, and which split each of them is in."""

import difflib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from textgen.errors import InputError
from textgen.sections import HELD_OUT, SPLITS, DataConfig
from textgen.terminal import brief, counted
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
from textgen.text.readers import read_table, read_text

FEW_DOCUMENTS = 20  # of validation or test, below which long files are cut
TOO_FEW_DOCUMENTS = 5  # below which they are cut into shorter documents: the gate decides on no fewer
CUTS = (CUT_WORDS, CUT_WORDS // 2, CUT_WORDS // 4)  # the words of a document of a long file, as tried in turn
HASHES = 2**64


@dataclass(frozen=True)
class SourceDocuments:
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
        return min(self.count(SPLITS.index(split)) for split in HELD_OUT)


def split_documents(text: LocalText, data: DataConfig) -> tuple[SourceDocuments, Census]:
    """Return the documents of local files, and in which split each of them is.

    Where validation or test would hold fewer than FEW_DOCUMENTS, long files are cut into documents of CUT_WORDS; where
    that leaves fewer than TOO_FEW_DOCUMENTS, into shorter ones, if that gives more.

    Raises:
        InputError: a file cannot be read or was changed meanwhile, no file has the separator, or a split is empty.
    """
    documents = SourceDocuments(text.files, data)
    census = take_census(documents)
    check_separator(documents, census)
    if data.document == "file" and census.long_files and census.held_out < FEW_DOCUMENTS:
        tried: list[tuple[SourceDocuments, Census]] = []
        while len(tried) < len(CUTS) and (not tried or tried[-1][1].held_out < TOO_FEW_DOCUMENTS):
            shorter = replace(documents, cut_words=CUTS[len(tried)])
            tried.append((shorter, take_census(shorter)))
        documents, census = max(tried, key=lambda one: one[1].held_out)  # the first where several are as good
    check_splits(census, data)
    return documents, census


def take_census(documents: SourceDocuments) -> Census:
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


def check_separator(documents: SourceDocuments, census: Census) -> None:
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
        copies = census.count(Census.COPY)
        but = f" ({copies:,} more with the same words left out)" if copies else ""
        fractions = {"validation": data.validation_fraction, "test": data.test_fraction}
        fraction = fractions.get(split, 1 - sum(fractions.values()))
        named = " and ".join(
            f"data.{name}_fraction={value:g}" for name, value in fractions.items() if split in (name, "train")
        )
        raise InputError(
            f"data.files: the {split} split is empty: {counted(kept, 'document')}{but} and none of them in it; with "
            f"{named} about {round(1 / fraction):,} more are needed"
        )
