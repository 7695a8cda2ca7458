"""Raw text: fetch it from the Hub, a folder, files or Python's own docstrings; freeze it in data/raw; verify it."""

import tempfile
from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from textgen.errors import Damaged, InputError
from textgen.files import Manifest
from textgen.hub import PIN_FILE, pin
from textgen.sections import DataConfig
from textgen.storage import Storage
from textgen.text.documents import Content, Part, by_document, mark_rows
from textgen.text.freezing import RawSplit, Reading, freeze_dataset, freeze_files
from textgen.text.local_files import LocalText
from textgen.text.sources import Files, HubDataset, choose_source, raw_home

if TYPE_CHECKING:
    import pyarrow

READ_ROWS = 1000


class RawManifest(Manifest):
    """A frozen corpus: its source with the pinned revision, and its splits."""

    name: str
    source: dict[str, Any]
    splits: dict[str, RawSplit]
    reading: Reading | None = None  # of local files

    def sha256_by_file(self) -> dict[str, str]:
        texts = {split.file: split.sha256 for split in self.splits.values()}
        lists = {split.documents_file: split.documents_sha256 for split in self.splits.values()}
        return texts | {file: sha256 for file, sha256 in lists.items() if file is not None and sha256 is not None}

    @property
    def has_units(self) -> bool:
        """Whether a document is tokenized as a whole, and not each of its rows on its own."""
        return self.reading is not None and not self.reading.by_row

    @property
    def revision(self) -> str | None:
        """The Hub commit that the text comes from."""
        return self.source.get("revision")


def fetch(data: DataConfig, storage: Storage, refresh: bool = False) -> RawManifest:
    """Freeze the corpus in data/raw and return its manifest; a corpus that is there already is only verified.

    With `refresh` the Hub is asked which commit a branch or a tag is at now, and that one is pinned.

    Raises:
        InputError: the local source is absent, empty, not UTF-8, or lacks a split or the column `text`.
        SourceUnavailable: the Hub did not give it.
    """
    source = choose_source(data, storage, refresh)
    if isinstance(source, HubDataset):
        storage.bring_file(source.home / PIN_FILE)
    identity = source.identity()
    if isinstance(source, HubDataset) and identity["revision"] is None:
        identity = {**identity, "revision": source.resolve_commit()}
    folder = raw_home(identity, storage)

    def freeze(temporary: Path) -> RawManifest:
        with tempfile.TemporaryDirectory(dir=temporary.parent, prefix=".download-") as cache:
            text = source.load(identity, cache)
            if isinstance(text, LocalText):
                splits, reading = freeze_files(text, data, temporary)
            else:
                splits, reading = freeze_dataset(text, temporary, data.text_column), None
        return RawManifest(key=folder.name, name=folder.parent.name, source=identity, splits=splits, reading=reading)

    manifest = storage.build(folder, RawManifest, freeze)
    if isinstance(source, HubDataset):
        pin(source.home, data.revision, identity["revision"])
        storage.push_file(source.home / PIN_FILE)
    return manifest


def raw_folder(data: DataConfig, storage: Storage, refresh: bool = False) -> Path | None:
    """Return where `fetch` freezes the corpus, asking no network: None where the Hub has to be asked for its commit.

    Raises:
        InputError: a local file is absent, empty or not UTF-8.
    """
    source = choose_source(data, storage, refresh)
    identity = source.identity()
    return None if isinstance(source, HubDataset) and identity["revision"] is None else raw_home(identity, storage)


def find_raw(storage: Storage, sha256: dict[str, str]) -> RawManifest:
    """Return the frozen corpus whose splits have these sha256, verified.

    Raises:
        InputError: there is none.
    """
    for file in sorted(storage.raw().glob(f"*/*/{RawManifest.FILE}")):
        with suppress(Damaged):  # or of another kind, as GPT-2's tokenizer
            manifest = RawManifest.parse(file.parent)
            if {name: split.sha256 for name, split in manifest.splits.items()} == sha256:
                return RawManifest.read(file.parent)
    raise InputError(f"{storage.raw()}: the raw text of the tokens is not there, or no longer what it was")


def read_rows(manifest: RawManifest, split: str) -> Iterator[str]:
    """Yield the rows of a split's file, in order; of local files, the parts of documents."""
    for row, _ in _read(manifest, split):
        yield row


def read_parts(manifest: RawManifest, split: str) -> Iterator[Part]:
    """Yield the text of a split in parts, in order, each with whether a document begins there."""
    if manifest.reading is None:
        yield from mark_rows(read_rows(manifest, split))
    else:
        yield from (Part(row, bool(begins)) for row, begins in _read(manifest, split))


def read_unit_parts(manifest: RawManifest, split: str) -> Iterator[Part]:
    """Yield the text in parts, each with whether a unit begins there: of local files a document, otherwise a row."""
    for part in read_parts(manifest, split):
        yield Part(part.text, part.begins or not manifest.has_units)


def read_units(manifest: RawManifest, split: str) -> Iterator[str]:
    """Yield what is tokenized as a whole: of local files a document, otherwise a row."""
    return ("".join(texts) for texts in by_document(read_unit_parts(manifest, split)))


def read_excerpts(manifest: RawManifest, split: str, most: int, characters: int) -> Iterator[Part]:
    """Yield at most `most` excerpts of a split, spread evenly over it; each is at most `characters` long.

    An excerpt begins where a unit does, or within one: at the beginning, the middle and the end of rows in turn where
    there are more rows than excerpts, at even distances otherwise.
    """
    import pyarrow.parquet

    columns = ["text", "begins"] if manifest.has_units else ["text"]
    with pyarrow.parquet.ParquetFile(manifest.folder / manifest.splits[split].file) as file:
        rows = file.metadata.num_rows
        chosen_N = np.linspace(0, rows - 1, min(rows, most)).round().astype(np.int64)
        first = turn = 0
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            inside_N = chosen_N[(chosen_N >= first) & (chosen_N < end)] - first
            taken = file.read_row_group(group, columns=columns).take(inside_N).to_pylist() if len(inside_N) else []
            for row in taken:
                yield from _excerpts(row["text"], row.get("begins", True), max(1, most // rows), characters, turn)
                turn += 1
            first = end


def _excerpts(text: str, begins: bool, most: int, characters: int, turn: int) -> Iterator[Part]:
    last = max(0, len(text) - characters)
    count = min(most, max(1, -(-len(text) // characters)))
    places = [last * (turn % 3) // 2] if count == 1 else [last * number // (count - 1) for number in range(count)]
    for place in places:
        yield Part(text[place : place + characters], begins and place == 0)


def left_out_now(data: DataConfig, raw: RawManifest, storage: Storage) -> Mapping[str, int]:
    """Return what is left out of the folders of local files as they are now, by reason; nothing of other sources.

    The text that was frozen may be from before some of it came or went.
    """
    source = choose_source(data, storage)
    try:
        return source.left_out() if isinstance(source, Files) else {}
    except InputError:  # the folder is gone: as it was then
        return raw.reading.left_out if raw.reading is not None else {}


def list_documents(manifest: RawManifest, split: str) -> "pyarrow.Table | None":
    """Return the `file`, `number` there, `hash`, `words` and `bytes` of each document; None but of local files."""
    import pyarrow.parquet

    file = manifest.splits[split].documents_file
    return None if file is None else pyarrow.parquet.read_table(manifest.folder / file)


def file_names(manifest: RawManifest, split: str) -> list[str]:
    """Return the names of the files that a split's documents are of; none but of local files."""
    listed = list_documents(manifest, split)
    return [] if listed is None else listed.column("file").unique().to_pylist()


def document_hashes(manifest: RawManifest, split: str) -> np.ndarray:
    """Return the hash of each document's content [D]: as listed, else of the text, with a line end after each row."""
    if (listed := list_documents(manifest, split)) is not None:
        return listed.column("hash").to_numpy()
    hashes = array("Q")
    for texts in by_document(read_parts(manifest, split)):
        content = Content()
        for text in texts:
            content.add(f"{text}\n")
        hashes.append(content.hash)
    return np.frombuffer(hashes, np.uint64)


def _read(manifest: RawManifest, split: str) -> Iterator[tuple[str, bool | None]]:
    import pyarrow.parquet

    columns = ["text", "begins"] if manifest.reading is not None else ["text"]
    with pyarrow.parquet.ParquetFile(manifest.folder / manifest.splits[split].file) as file:
        for group in range(file.num_row_groups):
            for batch in file.read_row_group(group, columns=columns).to_batches(max_chunksize=READ_ROWS):
                values = [batch.column(name).to_pylist() for name in columns]
                yield from zip(*values, strict=True) if len(values) == 2 else ((text, None) for text in values[0])
