"""Which frozen texts, and which published versions that were trained on them, hold a document."""

import functools
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from textgen.errors import Damaged
from textgen.files import sha256_file, verify
from textgen.publishing.version import LINEAGE_FILE, read_lineage
from textgen.sections import SPLITS, DataConfig
from textgen.storage import Storage
from textgen.text.corpus import RawManifest, list_documents
from textgen.text.freezing import CUTS, Documents, take_census
from textgen.text.local_files import SplitFile, find_files

if TYPE_CHECKING:
    import pyarrow

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where a document is: in which split of which text, by which name, and the versions of that text."""

    raw: str
    split: str
    document: str
    versions: list[str]


def find_document(file: Path, data: DataConfig, storage: Storage) -> list[Place]:
    """Return where the documents of `file` are, among the texts of local files.

    The file is taken whole, cut as long files are, and cut by the `data.document` of each text.

    Raises:
        InputError: the file is absent or cannot be read.
    """

    @functools.cache
    def hashes_of(document: str) -> set[int]:
        return _hashes(file, data.model_copy(update={"document": document}))

    as_configured = hashes_of(data.document)
    versions = _versions_by_raw(storage)
    places = []
    for raw in _texts(storage):
        hashes = as_configured | hashes_of(str(raw.source.get("document", data.document)))
        try:
            lists = _read_lists(raw)
        except Damaged as damage:
            log.warning("%s; not searched", damage)
            continue
        name = storage.name(raw.folder)
        for split, documents in lists.items():
            for row in documents.select(["file", "number", "hash"]).to_pylist():
                if row["hash"] in hashes:
                    places.append(Place(name, split, f"{row['file']}:{row['number']}", versions.get(name, [])))
    return places


def _texts(storage: Storage) -> Iterator[RawManifest]:
    for file in sorted(storage.raw().glob(f"*/*/{RawManifest.FILE}")):
        with suppress(Damaged):  # or of another kind, as GPT-2's tokenizer
            yield RawManifest.parse(file.parent)


def _read_lists(raw: RawManifest) -> "dict[str, pyarrow.Table]":
    """Return the list of each split's documents, nothing where a text has none.

    Raises:
        Damaged: a list is missing, or is not what it was.
    """
    sha256s = {one.documents_file: one.documents_sha256 for one in raw.splits.values()}
    verify(raw.folder, {file: sha256 for file, sha256 in sha256s.items() if file is not None and sha256 is not None})
    lists = {split: list_documents(raw, split) for split in SPLITS}
    return {split: one for split, one in lists.items() if one is not None}


def _hashes(file: Path, data: DataConfig) -> set[int]:
    found = find_files("--find", [str(file)]).files
    files = [SplitFile(one, sha256_file(one.path), None) for one in found]
    census = [take_census(Documents(files, data, cut_words)) for cut_words in (None, *CUTS)]
    return {number for one in census for number in one.hashes_D.tolist()}


def _versions_by_raw(storage: Storage) -> dict[str, list[str]]:
    versions: dict[str, list[str]] = {}
    for lineage in sorted(storage.models().glob(f"*/v*/{LINEAGE_FILE}")):
        with suppress(Damaged):
            folder = read_lineage(lineage.parent, "raw", "folder")
            versions.setdefault(folder, []).append(f"{lineage.parents[1].name}@{lineage.parent.name}")
    return versions
