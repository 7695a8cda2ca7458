"""Which frozen texts, and which published versions that were trained on them, hold a document."""

import functools
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from textgen.errors import Damaged
from textgen.files import sha256_file
from textgen.publishing.version import LINEAGE_FILE, read_lineage
from textgen.sections import SPLITS, DataConfig
from textgen.storage import Storage
from textgen.text.corpus import RawManifest, list_documents
from textgen.text.freezing import CUTS, Documents, take_census
from textgen.text.local_files import SplitFile, find_files


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
    for manifest_file in sorted(storage.raw().glob(f"*/*/{RawManifest.FILE}")):
        with suppress(Damaged):
            raw = RawManifest.parse(manifest_file.parent)
            hashes = as_configured | hashes_of(str(raw.source.get("document", data.document)))
            for split in SPLITS:
                if (documents := list_documents(raw, split)) is None:
                    continue
                for row in documents.select(["file", "number", "hash"]).to_pylist():
                    if row["hash"] in hashes:
                        name = storage.name(raw.folder)
                        places.append(Place(name, split, f"{row['file']}:{row['number']}", versions.get(name, [])))
    return places


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
