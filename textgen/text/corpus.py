"""Raw text: fetch it from the Hub, a folder, files or Python's own docstrings; freeze it in data/raw; verify it."""

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from textgen.config import SPLITS, DataConfig
from textgen.errors import Damaged, InputError
from textgen.files import Manifest, sha256_file
from textgen.hub import PIN_FILE, pin
from textgen.storage import Storage
from textgen.text.sources import HubDataset, choose_source, raw_home

if TYPE_CHECKING:
    from datasets import DatasetDict

READ_ROWS = 10_000


class RawSplit(BaseModel):
    """One split of the frozen text: a parquet file with a `text` column, and what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    sha256: str
    bytes: int  # of the file
    rows: int
    words: int  # separated by whitespace
    text_bytes: int  # of the text in UTF-8


class RawManifest(Manifest):
    """A frozen corpus: its source with the pinned revision, and its splits."""

    name: str
    source: dict[str, Any]
    splits: dict[str, RawSplit]

    def sha256_by_file(self) -> dict[str, str]:
        return {split.file: split.sha256 for split in self.splits.values()}

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
            splits = _freeze_splits(source.load(identity, cache), temporary)
        return RawManifest(key=folder.name, name=folder.parent.name, source=identity, splits=splits)

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


def read_rows(manifest: RawManifest, split: str) -> list[str]:
    """Return the rows of a split, in order."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(manifest.folder / manifest.splits[split].file, columns=["text"])
    return table.column("text").to_pylist()


def _freeze_splits(dataset: "DatasetDict", folder: Path) -> dict[str, RawSplit]:
    """Write each split as a read-only parquet file with its counts."""
    if missing := [split for split in SPLITS if split not in dataset]:
        raise InputError(f"data: no {' and no '.join(missing)} split; there are {', '.join(dataset)}")
    splits: dict[str, RawSplit] = {}
    for split in SPLITS:
        rows = dataset[split]
        if "text" not in rows.column_names:
            raise InputError(f"data: the {split} split has no column `text`; it has {', '.join(rows.column_names)}")
        path = folder / f"{split}.parquet"
        rows.select_columns("text").to_parquet(path)
        words = text_bytes = 0
        for batch in rows.select_columns("text").iter(READ_ROWS):
            words += sum(len(text.split()) for text in batch["text"])
            text_bytes += sum(len(text.encode()) for text in batch["text"])
        if text_bytes == 0:
            raise InputError(f"data: the {split} split is empty")
        path.chmod(0o444)
        splits[split] = RawSplit(
            file=path.name, sha256=sha256_file(path), bytes=path.stat().st_size, rows=len(rows), words=words,
            text_bytes=text_bytes,
        )  # fmt: skip
    return splits
