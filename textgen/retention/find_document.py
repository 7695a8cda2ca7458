"""Which frozen texts, and which published versions that were trained on them, hold a document."""

import functools
import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from textgen.errors import Damaged, InputError
from textgen.files import sha256_file
from textgen.retention.origins import models, text_keys, undamaged
from textgen.sections import SPLITS, DataConfig
from textgen.storage import Storage
from textgen.text.corpus import RawManifest, document_hashes
from textgen.text.local_files import SplitFile, find_files
from textgen.text.report import DocumentList
from textgen.text.splitting import SourceDocuments, take_census
from textgen.text.tokenizer import GPT2_FOLDER

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where a document is: in which split of which text, by which name, and the versions of that text."""

    raw: str
    split: str
    document: str
    versions: list[str]


class Asked:
    """The file that is asked about, as documents."""

    def __init__(self, file: Path, data: DataConfig, option: str = "--find") -> None:
        """Read the file that the option names.

        Raises:
            InputError: it is absent, cannot be read, or holds no text.
        """
        self.data = data
        self.files = [SplitFile(one, sha256_file(one.path), None) for one in find_files(option, [str(file)]).files]
        if not len(self.hashes("file", None)):
            raise InputError(f"{option}={str(file)!r}: there is no text in it")

    @functools.cache  # noqa: B019  for as long as the command runs
    def hashes(self, document: str, cut_words: int | None) -> np.ndarray:
        """Return the hashes of its documents, as a text of this `data.document` has them."""
        data = self.data.model_copy(update={"document": document})
        census = take_census(SourceDocuments(self.files, data, cut_words))
        return census.hashes_D[census.words_D > 0]

    def cut_as(self, raw: RawManifest) -> np.ndarray:
        """Return the hashes of its documents, as a text was cut into documents."""
        cut_words = raw.reading.cut_words if raw.reading is not None and raw.reading.cut else None
        is_old = raw.reading is None and raw.source.get("kind") == "files"  # each line was a document then
        return self.hashes(raw.source.get("document", "line" if is_old else "file"), cut_words)

    def found_in(self, raw: RawManifest, split: str) -> tuple[list[int], set[int]]:
        """Return which documents of a split it holds, whole or cut as that text was, and their hashes."""
        known, hashes_D = np.concatenate([self.cut_as(raw), self.hashes("file", None)]), document_hashes(raw, split)
        numbers = np.flatnonzero(np.isin(hashes_D, known))
        return numbers.tolist(), {*hashes_D[numbers].tolist()}

    def share(self, raw: RawManifest, held: set[int]) -> tuple[int, int]:
        """Return how many of its documents are among the hashes that a text holds, and of how many."""
        own = {*self.cut_as(raw).tolist()}
        is_whole = held.issuperset(self.hashes("file", None).tolist())
        return len(own if is_whole else own & held), len(own)


class Found(NamedTuple):
    """Where documents are, and why they may be in other places too."""

    places: list[Place]
    missed: list[str]  # texts that could not be looked in
    shares: dict[str, tuple[int, int]]  # of the documents asked about, by text: how many it holds, and of how many


def find_document(asked: Asked, storage: Storage) -> Found:
    """Return where the documents that are asked about are, whole or cut into documents as each text was.

    Raises:
        InputError: there is no text to look in.
        Damaged: no text holds it, and one could not be looked in.
    """
    (by_raw, silent), missed = _versions_by_raw(storage), list[str]()
    places, shares = list[Place](), dict[str, tuple[int, int]]()
    keys, looked_in = set[str](), False  # the keys of the texts that are there
    for folder in _raw_folders(storage):
        name = storage.name(folder)
        try:
            raw = RawManifest.read(folder)
        except Damaged as damage:
            missed.append(str(damage))
            keys.add(undamaged(folder.name))  # it is there
            continue
        keys.add(raw.key)
        looked_in = True
        held = set[int]()
        for split in SPLITS:
            numbers, hashes = asked.found_in(raw, split)
            if numbers:
                documents = DocumentList(raw, split)
                places += [Place(name, split, documents.name(n), by_raw.get(name, [])) for n in numbers]
                held |= hashes
        shares[name] = asked.share(raw, held)
    gone = {raw: versions for raw, versions in by_raw.items() if raw.split("/")[-1] not in keys}
    missed += [f"{raw} of {', '.join(gone[raw])} is not there" for raw in sorted(gone)]
    keys |= {raw.split("/")[-1] for raw in gone}
    others = {key: name for key, name in text_keys(storage) if key not in keys}
    missed += [f"the text {key} is not there, of which {name} was made" for key, name in sorted(others.items())]
    for one in (*silent, *missed):
        log.warning("not looked in: %s", one)
    if not places and (silent or missed):
        raise Damaged("no text that could be looked in holds it, but not every text could: see the lines above")
    if not looked_in:
        raise InputError(f"storage.root={storage.root!r}: there is no text in {storage.raw()} to look in")
    return Found(places, missed, shares)


def _raw_folders(storage: Storage) -> Iterator[Path]:
    """Yield the folders of frozen texts, but for those that were set aside and made anew."""
    for file in sorted(storage.raw().glob(f"*/*/{RawManifest.FILE}")):
        folder, key = file.parent, undamaged(file.parent.name)
        is_replaced = key != folder.name and (folder.with_name(key) / RawManifest.FILE).exists()
        if folder.parent.name != GPT2_FOLDER and not folder.name.startswith(".") and not is_replaced:
            yield folder


def _versions_by_raw(storage: Storage) -> tuple[dict[str, list[str]], list[str]]:
    """Return the versions that were trained on each text, and which do not say on what they were."""
    by_raw, silent = defaultdict[str, list[str]](list), []
    for version in (model for model in models(storage) if model.kind == "version"):
        if isinstance(version.lineage, Damaged):
            silent.append(str(version.lineage))
        else:
            by_raw[version.lineage.raw.folder].append(version.name)
    return by_raw, silent
