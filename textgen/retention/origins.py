"""What was made of what in a storage: versions of trainings, these of tokens, these of texts. It loads no torch."""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from textgen.config import VERSION
from textgen.errors import Damaged
from textgen.files import Manifest, all_held, lock_file, read_json, sha256_file
from textgen.model.find import number_of
from textgen.publishing.version import LINEAGE_FILE
from textgen.storage import Storage
from textgen.text.tokenizer import GPT2_FOLDER, TOKENIZER_FILE

DAMAGED = re.compile(r"(.+)\.damaged-[0-9]+")  # as `set_aside` names things
# Of a training; textgen/training has them, and loads torch:
KEY_FILE, STATES_FOLDER, TRUNK_FOLDER = "key.txt", "states", "trunk"
STATES = "step-????????"
TRUNK_FILE = "trunk.json"  # names the state from which a longer training goes on


class Made(Manifest):
    """What the manifests of texts, tokens, trainings and reports say of where they come from."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    raw_key: str | None = None
    raw_sha256: dict[str, str] = Field({})
    tokens_key: str | None = None
    tokenizer: dict[str, Any] = Field({})
    tokenizer_sha256: dict[str, str] = Field({})
    initial_sha256: str | None = None
    sha256: dict[str, str] = Field({})
    splits: dict[str, Any] = Field({})

    def sha256_by_file(self) -> dict[str, str]:
        return self.sha256

    def texts_sha256(self) -> dict[str, str]:
        """Return the sha256 of each split of a text."""
        return {name: split.get("sha256", "") for name, split in self.splits.items() if isinstance(split, dict)}


class Begun(Made):
    """What a training says of where it comes from before it is finished."""

    FILE = "origin.json"


class Stage(BaseModel):
    """What a lineage says of one stage."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    folder: str  # under the root
    sha256: dict[str, str]
    initial_sha256: str | None = None  # of a training


class Lineage(BaseModel):
    """What a lineage says of where a version comes from."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    raw: Stage
    tokens: Stage
    checkpoint: Stage


@dataclass(frozen=True)
class Training:
    """A training folder."""

    folder: Path
    key: str
    made: Made | None  # None until it is finished
    origin: Made | None  # what it was made of, known from its beginning; None of one that is damaged, or of older code
    is_damaged: bool
    is_running: bool

    @property
    def is_named_by_key(self) -> bool:
        """Whether a run named the folder; otherwise a person did, with `textgen train --out`."""
        return self.folder.name == self.key or self.folder.name.startswith(f"{self.key}-")

    @property
    def states(self) -> list[Path]:
        return sorted((self.folder / STATES_FOLDER).glob(STATES))

    @property
    def kept_states(self) -> list[Path]:
        """The states from which longer trainings, or trainings of other text, go on."""
        return sorted((self.folder / TRUNK_FOLDER).glob(STATES))

    @property
    def tokenizer_sha256(self) -> str | None:
        """The sha256 of its tokenizer, by which the tokens of an unfinished training can be told."""
        file = self.folder / TOKENIZER_FILE
        return sha256_file(file) if file.is_file() else None


def is_held(lock: Path) -> bool:
    """Return whether a process holds a lock file."""
    if not lock.exists():
        return False
    with all_held([lock]) as free:
        return not free


def undamaged(name: str) -> str:
    """Return the name that a thing had before it was set aside; any other name as it is."""
    matched = DAMAGED.fullmatch(name)
    return matched[1] if matched is not None else name


def folders_in(home: Path) -> list[Path]:
    """Return the folders of a stage, without those that are hidden or were set aside."""
    if not home.is_dir():
        return []
    return [
        path
        for path in sorted(home.iterdir())
        if path.is_dir() and not path.is_symlink() and path.name[0] != "." and not DAMAGED.fullmatch(path.name)
    ]


def not_made_anew(home: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the folders of a stage that are there only as damaged copies: where each was, and a copy."""
    for copy in sorted(home.glob("*.damaged-*")):
        folder = home / undamaged(copy.name)
        if not folder.exists() and copy.is_dir() and not copy.is_symlink():
            yield folder, copy


def trainings(storage: Storage) -> Iterator[Training]:
    """Yield the training folders of this machine."""
    for folder in folders_in(storage.training()):
        if not (folder / KEY_FILE).is_file():
            continue
        made = parsed(Made, folder)
        is_damaged = made is None and (folder / Made.FILE).exists()
        key = (folder / KEY_FILE).read_text(errors="replace").strip()
        yield Training(folder, key, made, made or parsed(Begun, folder), is_damaged, is_held(lock_file(folder)))


def parsed(kind: type[Made], folder: Path) -> Made | None:
    """Return the manifest of a folder, None where there is none that can be read."""
    with suppress(Damaged):
        return kind.parse(folder)
    return None


def texts(storage: Storage) -> list[Path]:
    """Return the folders of the frozen texts of this machine."""
    homes = [home for home in folders_in(storage.raw()) if home.name != GPT2_FOLDER]
    return [folder for home in homes for folder in folders_in(home) if (folder / Made.FILE).exists()]


def versions(storage: Storage) -> Iterator[tuple[str, Path]]:
    """Yield the versions of this machine, of each name the oldest first: NAME@v3 and the folder."""
    for home in folders_in(storage.models()):
        for folder in sorted(folders_in(home), key=lambda folder: number_of(folder.name)):
            if VERSION.fullmatch(folder.name):
                yield f"{home.name}@{folder.name}", folder


def lineage_of_version(folder: Path) -> Lineage:
    """Return where a version comes from.

    Raises:
        Damaged: it does not say.
    """
    try:
        return Lineage.model_validate(read_json(folder / LINEAGE_FILE))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise Damaged(f"{folder / LINEAGE_FILE} is damaged: it has no {where}") from error


class Trunks:
    """The states that a `trunk.json` names, from which longer trainings go on."""

    def __init__(self, storage: Storage) -> None:
        home = storage.training()
        self.words_by_file = {file: _words_of(file) for file in sorted(home.rglob(TRUNK_FILE))}

    def of(self, training: Path) -> list[Path]:
        """Return the files that are in a training folder, or name it."""
        return [
            file
            for file, words in self.words_by_file.items()
            if training in file.parents or words is None or training.name in words
        ]

    def keeps(self, state: Path) -> bool:
        """Return whether a state is to stay: it is named, or which one is cannot be told."""
        training = state.parents[1]
        for file in self.of(training):
            words = self.words_by_file[file]
            if words is None or state.name in words:
                return True
            there = [*state.parent.glob(STATES), *(training / TRUNK_FOLDER).glob(STATES)]
            if not any(other.name in words for other in there):
                return True
        return False


def _words_of(file: Path) -> set[str] | None:
    """Return all names and steps in a JSON file, None where it cannot be read."""
    try:
        return set(_words(read_json(file)))
    except Damaged:
        return None


def _words(value: object) -> Iterator[str]:
    match value:
        case dict():
            for one in value.values():
                yield from _words(one)
        case list():
            for one in value:
                yield from _words(one)
        case str():
            yield value
            yield from value.split("/")
        case int():
            yield f"step-{value:08d}"
