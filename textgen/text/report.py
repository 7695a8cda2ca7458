"""A look at a frozen text before training: its documents by split and kind, and how much of it stands in train."""

from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from textgen.files import Manifest, content_key
from textgen.sections import HELD_OUT, SPLITS
from textgen.storage import Storage
from textgen.terminal import counted
from textgen.text.corpus import RawManifest, document_hashes, list_documents, read_parts
from textgen.text.documents import Part, WordCount
from textgen.text.local_files import ending_of, in_words, read_kind
from textgen.text.overlap import Overlaps, Runs, worst
from textgen.text.splitting import FEW_DOCUMENTS

REPORT_VERSION = 3  # of the figures; a change makes every report key new
WORST = 5  # documents that are named


class Sized(BaseModel):
    """A document by its name, and its words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    words: int


class Amount(BaseModel):
    """How much text: documents, words between white space, bytes in UTF-8."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    documents: int
    words: int
    bytes: int


class Shared(BaseModel):
    """A document of which much stands in train: the share of its words, and the longest run in words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    share: float
    longest: int


class SplitReport(Amount):
    """One split.

    `overlap` is the share of its words that stand in train, in runs of 13 words or in whole documents; null for train.
    """

    kinds: dict[str, Amount] = {}  # of local files, by ending
    longest: Sized
    shortest: Sized
    overlap: float | None = None
    longest_overlap: int | None = None  # the longest of these, in words
    worst: list[Shared] = []


class TextReport(Manifest):
    """What a frozen text holds, measured once and kept in data/reports."""

    raw_key: str
    splits: dict[str, SplitReport]

    def sha256_by_file(self) -> dict[str, str]:
        return {}


class DocumentList:
    """The documents of a split: each one's name, words and bytes."""

    def __init__(self, raw: RawManifest, split: str) -> None:
        self.raw, self.split = raw, split
        self.stored = list_documents(raw, split)
        self.words, self.bytes = array("q"), array("q")

    def watch(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Yield the parts, and count their documents where no list of them is stored."""
        if self.stored is not None:
            for name, values in (("words", self.words), ("bytes", self.bytes)):
                values.frombytes(self.stored.column(name).to_numpy().tobytes())
            yield from parts
            return
        count = WordCount()
        for part in parts:
            if part.begins:
                count = WordCount()
                self.words.append(0)
                self.bytes.append(0)
            count.add(part.text)
            self.words[-1], self.bytes[-1] = count.words, count.bytes
            yield part

    def name(self, number: int) -> str:
        """Return the name of a document: its file, and its place there where the file has several."""
        if self.stored is None:
            return f"document {number + 1} of {self.split}"
        file, place = (self.stored.column(name)[number].as_py() for name in ("file", "number"))
        return file if place == 1 and self._is_alone(file) else f"{file}:{place}"

    def _is_alone(self, file: str) -> bool:
        kind = read_kind(Path(file))
        whole = self.raw.source.get("document") == "file" and not (self.raw.reading and self.raw.reading.cut)
        return whole and kind is not None and kind[0] == "text"

    def report(self, overlaps: Overlaps | None) -> SplitReport:
        """Return what the split holds."""
        words_D = np.frombuffer(self.words, np.int64)
        longest, shortest = int(words_D.argmax()), int(words_D.argmin())
        found = {} if overlaps is None else {
            "overlap": overlaps.share,
            "longest_overlap": overlaps.longest,
            "worst": [Shared(name=self.name(one.document), share=one.share, longest=one.longest)
                      for one in worst(overlaps, WORST)],
        }  # fmt: skip
        return SplitReport(
            documents=len(words_D),
            words=int(words_D.sum()),
            bytes=sum(self.bytes),
            kinds=self._by_kind(),
            longest=Sized(name=self.name(longest), words=int(words_D[longest])),
            shortest=Sized(name=self.name(shortest), words=int(words_D[shortest])),
            **found,
        )

    def _by_kind(self) -> dict[str, Amount]:
        if self.stored is None:
            return {}
        file_D = self.stored.column("file").unify_dictionaries().combine_chunks()
        endings = [ending_of(file) for file in file_D.dictionary.to_pylist()]
        kinds = {ending: number for number, ending in enumerate(sorted(set(endings)))}
        kind_D = np.array([kinds[ending] for ending in endings])[file_D.indices.to_numpy()]
        words_D, bytes_D = np.frombuffer(self.words, np.int64), np.frombuffer(self.bytes, np.int64)
        amounts = {}
        for ending, number in kinds.items():
            is_one_D = kind_D == number
            amounts[ending] = Amount(
                documents=int(is_one_D.sum()), words=int(words_D[is_one_D].sum()), bytes=int(bytes_D[is_one_D].sum())
            )
        return amounts


def report_on(raw: RawManifest, storage: Storage) -> TextReport:
    """Return the report on a frozen text; one that is there already is only verified."""
    key = content_key(REPORT_VERSION, raw.key, raw.sha256_by_file())

    def build(folder: Path) -> TextReport:
        lists = {str(split): DocumentList(raw, split) for split in SPLITS}
        runs = Runs({split: lists[split].watch(read_parts(raw, split)) for split in HELD_OUT})
        runs.look_in(lists["train"].watch(read_parts(raw, "train")))
        in_train = document_hashes(raw, "train")
        overlaps = {
            split: found.with_copies(np.isin(document_hashes(raw, split), in_train))
            for split, found in runs.overlaps().items()
        }
        splits = {split: one.report(overlaps.get(split)) for split, one in lists.items()}
        return TextReport(key=key, raw_key=raw.key, splits=splits)

    return storage.build(storage.report(key), TextReport, build)


def text_in_words(raw: RawManifest, report: TextReport, left_out: Mapping[str, int]) -> list[str]:
    """Return what is in a text and what was left out, in a few lines; `left_out` of folders, by reason."""
    amounts = ", ".join(f"{one.documents:,} in {split}" for split, one in report.splits.items())
    documents, words = (sum(getattr(one, what) for one in report.splits.values()) for what in ("documents", "words"))
    lines = [f"text: {counted(documents, 'document')} ({amounts}), {counted(words, 'word')}"]
    if (reading := raw.reading) is not None:
        if reading.cut:
            lines.append(
                "long files were cut into documents, at a blank line after "
                f"{reading.cut_words:,} words, at a line end after twice as many: "
                f"uncut, validation or test would have fewer than {FEW_DOCUMENTS} documents"
            )
        if reading.copies:
            lines.append(f"copies: {counted(reading.copies, 'document')} with the words of another one, left out")
        if reading.empty:
            lines.append(f"empty: {counted(reading.empty, 'document')} without a word, left out")
    if left_out:
        lines.append(f"left out of folders: {in_words(left_out)}")
    shares = ", ".join(f"{report.splits[split].overlap:.1%} of {split}" for split in HELD_OUT)
    longest = max(report.splits[split].longest_overlap or 0 for split in HELD_OUT)
    lines.append(
        f"overlap: {shares} stands in train, in runs of 13 words or whole documents; the longest has {longest:,} words"
    )
    return lines


def overlap_in_words(split: str, report: SplitReport) -> str:
    """Return how much of a held-out split stands in train, and its worst documents."""
    named = "".join(f"; {one.name} {one.share:.0%}, {one.longest} words in a row" for one in report.worst)
    return f"{report.overlap:.1%} of the words of {split} stand in train, in runs of 13 or whole documents{named}"
