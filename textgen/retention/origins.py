"""What is in a storage folder, and of what it was made: versions, trainings, tokens, texts. It loads no torch."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from textgen.config import VERSION, VERSION_NAME
from textgen.errors import Damaged
from textgen.files import M, Manifest, all_held, lock_file, read_json, sha256_file
from textgen.model.find import number_of
from textgen.publishing.version import LINEAGE_FILE
from textgen.storage import Storage
from textgen.text.tokenizer import GPT2_FOLDER, TOKENIZER_FILE
from textgen.training.folder import KEY_FILE, STATES, STATES_FOLDER, TRUNK_FILE, TRUNK_FOLDER, Origin

DAMAGED = re.compile(r"(.+)\.damaged-[0-9]+")  # as `set_aside` names things
ANY_WEIGHTS = ".safetensors"


class Made(Manifest):
    """What the manifests of texts, tokens, trainings and reports say of where they come from."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    raw_key: str | None = None
    raw_sha256: dict[str, str] = Field({})
    tokens_key: str | None = None
    tokenizer: dict[str, Any] = Field({})
    tokenizer_sha256: dict[str, str] = Field({})
    initial_sha256: str | None = None
    config: dict[str, Any] = Field({})
    sha256: dict[str, str] = Field({})
    splits: dict[str, Any] = Field({})

    def sha256_by_file(self) -> dict[str, str]:
        return self.sha256

    def texts_sha256(self) -> dict[str, str]:
        """Return the sha256 of each split of a text."""
        return {name: split.get("sha256", "") for name, split in self.splits.items() if isinstance(split, dict)}


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
    config: dict[str, Any] = Field({})
    earlier_texts: list[str] = Field([])
    names_all_texts: bool = False

    @property
    def initial(self) -> str | None:
        """The folder of the version that its training started from, under the root."""
        return _version_in(self.config)

    @property
    def text_keys(self) -> set[str]:
        """The keys of the texts that it says it came from."""
        return {self.raw.folder.split("/")[-1], *self.earlier_texts}

    @property
    def start(self) -> str | None:
        """The sha256 of the weights it started from, None where it needs none to tell all texts that it came from."""
        return None if self.names_all_texts else self.checkpoint.initial_sha256


@dataclass(frozen=True)
class Training:
    """A training folder."""

    folder: Path
    key: str
    made: Made | None  # None until it is finished, and of one whose manifest is damaged
    origin: Origin | None  # None where it does not say of what it was made: it is damaged, or of older code
    is_damaged: bool
    is_running: bool
    copies: tuple[Path, ...]  # where its files are: the folder, or what was set aside of it

    @property
    def start(self) -> str | None:
        """The sha256 of the weights it started from, None where it needs none to tell all texts that it came from."""
        return self.origin.initial_sha256 if self.origin is not None and not self.origin.names_all_texts else None

    @property
    def is_named_by_key(self) -> bool:
        """Whether a run named the folder; otherwise a person did, with `textgen train --out`."""
        return self.folder.name == self.key or self.folder.name.startswith(f"{self.key}-")

    @property
    def states(self) -> list[Path]:
        return sorted((self.folder / STATES_FOLDER).glob(STATES))

    @property
    def tokenizer_sha256(self) -> str | None:
        """The sha256 of its tokenizer, by which the tokens of an unfinished training of older code can be told."""
        file = self.folder / TOKENIZER_FILE
        return sha256_file(file) if file.is_file() else None

    def holds_weights(self) -> bool:
        """Return whether there are weights in it here."""
        return any(any(copy.rglob(f"*{ANY_WEIGHTS}")) for copy in self.copies)

    def weights(self, storage: Storage) -> set[str]:
        """Return the sha256 of its weights: the best, and those of each state here or in the remote root."""
        found = weights_of(self.made.sha256) if self.made is not None else set()
        for copy in self.copies:
            found |= weights_in(copy) if self.made is None else set()
            for home in (copy / STATES_FOLDER, copy / TRUNK_FOLDER):
                for state in {*home.glob(STATES), *storage.folders(home, STATES)}:
                    try:
                        found |= weights_of(storage.read_manifest(state, Made).sha256)
                    except Damaged:
                        found |= weights_in(state)
        return found


@dataclass(frozen=True)
class Model:
    """A folder with a model that was published."""

    kind: str  # "version", or "copy": a copy of one under another name
    name: str  # NAME@v3
    folder: Path
    copies: Sequence[Path]  # the folder, and what was set aside of it
    lineage: Lineage | Damaged  # Damaged: none of them says of what it was made

    def weights(self) -> set[str]:
        """Return the sha256 of its weights, as it says or else as they are."""
        if isinstance(self.lineage, Lineage):
            return weights_of(self.lineage.checkpoint.sha256)
        return set().union(*map(weights_in, self.copies))


def weights_of(sha256_by_file: Mapping[str, str]) -> set[str]:
    """Return the sha256 of the files of weights."""
    return {sha256 for file, sha256 in sha256_by_file.items() if file.endswith(ANY_WEIGHTS)}


def weights_in(folder: Path) -> set[str]:
    """Return the sha256 of the files of weights in a folder, as they are."""
    return {*map(sha256_file, folder.glob(f"*{ANY_WEIGHTS}"))}


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


def folders_in(home: Path, set_aside: bool = False, links: bool = False) -> list[Path]:
    """Return the folders of a stage, without those that are hidden; those set aside, and links, only if asked for."""
    return [
        path
        for path in sorted(home.iterdir() if home.is_dir() else ())
        if path.is_dir() and path.name[0] != "." and (links or not path.is_symlink())
        and (set_aside or not is_set_aside(path))
    ]  # fmt: skip


def folders_under(home: Path, set_aside: bool = False, links: bool = True) -> Iterator[Path]:
    """Yield the folders in one and in these, at any depth; then those that `links` lead to. Each place comes once."""
    seen, folders, waiting = set[Path](), folders_in(home, set_aside, links), list[Path]()
    while folders or waiting:
        path = folders.pop() if folders else waiting.pop()
        if path.is_symlink() and folders:
            waiting.append(path)
        elif (place := path.resolve()) not in seen:
            seen.add(place)
            folders += folders_in(path, set_aside, links)
            yield path


def is_linked(path: Path, storage: Storage) -> bool:
    """Return whether a path leads out of the storage folder by a link that is in it."""
    above = [one for one in path.parents if storage.local in one.parents]
    return any(one.is_symlink() for one in (path, *above))


def is_set_aside(path: Path) -> bool:
    """Return whether a thing is a damaged copy."""
    return DAMAGED.fullmatch(path.name) is not None


def not_made_anew(home: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the folders of a stage that are there only as damaged copies: where each was, and a copy."""
    for copy in filter(is_set_aside, folders_in(home, set_aside=True)):
        if not (folder := home / undamaged(copy.name)).exists():
            yield folder, copy


def trainings(storage: Storage) -> Iterator[Training]:
    """Yield the training folders of this machine, wherever in the root a person has put them."""
    # A link elsewhere in the root, as `text/` may be one, can lead to all that a person has.
    for folder in sorted({*folders_under(storage.training()), *folders_under(storage.local, links=False)}):
        if (folder / KEY_FILE).is_file():
            made = _manifest(folder, Made)
            origin = _complete(_manifest(folder, Origin), made)
            is_damaged = made is None and (folder / Made.FILE).exists()
            key = (folder / KEY_FILE).read_text(errors="replace").strip()
            yield Training(folder, key, made, origin, is_damaged, is_held(lock_file(folder)), (folder,))


def all_trainings(storage: Storage) -> Iterator[Training]:
    """Yield the trainings of this machine, those that are only damaged copies, and those of the remote root."""
    yield from trainings(storage)
    home = storage.training()
    for folder, copy in not_made_anew(home):
        made = _manifest(copy, Made)
        origin = _complete(_manifest(copy, Origin), made)
        yield Training(folder, folder.name, made, origin, is_damaged=made is None, is_running=False, copies=(copy,))
    for folder in sorted({*storage.folders(home, "*"), *storage.folders(home, "*", file=Origin.FILE)}):
        if not (folder / Made.FILE).exists():
            made = _manifest(folder, Made, storage)
            origin = _complete(_manifest(folder, Origin, storage), made)
            yield Training(folder, folder.name, made, origin, is_damaged=False, is_running=False, copies=(folder,))


def _manifest(folder: Path, kind: type[M], storage: Storage | None = None) -> M | None:
    """Return a manifest of a folder, with a `storage` also of one in its remote root; None where none is sound."""
    with suppress(Damaged):
        return kind.parse(folder) if storage is None else storage.read_manifest(folder, kind)
    return None


def _complete(begun: Origin | None, made: Made | None) -> Origin | None:
    """Return what a training was made of, of what it says when it begins and when it is finished."""
    if made is None or made.tokens_key is None:
        return begun
    if begun is not None and (begun.key, begun.initial_sha256) == (made.key, made.initial_sha256):
        return begun
    return Origin(
        key=made.key, tokens_key=made.tokens_key, initial_sha256=made.initial_sha256,
        initial=_version_in(made.config), texts=[], names_all_texts=False,
    )  # fmt: skip


def _version_in(config: Mapping[str, Any]) -> str | None:
    """Return the folder of the version that a configuration starts from, under the root; None where it names none."""
    section = config.get("training")
    name = section.get("init_from") if isinstance(section, dict) else None
    matched = VERSION_NAME.fullmatch(name) if isinstance(name, str) else None
    return f"models/{matched[1]}/{matched[2]}" if matched is not None and matched[2] != "champion" else None


def text_keys(storage: Storage) -> Iterator[tuple[str, str]]:
    """Yield the keys of the texts that something here was made of, and what that is."""
    for folder in folders_in(storage.processed(), links=True):
        if (made := _manifest(folder, Made)) is not None and made.raw_key is not None:
            yield made.raw_key, storage.name(folder)
    for training in trainings(storage):
        for key in training.origin.texts if training.origin is not None else ():
            yield key, storage.name(training.folder)
    for model in models(storage):
        for key in model.lineage.text_keys if isinstance(model.lineage, Lineage) else ():
            yield key, storage.name(model.folder)


def texts(storage: Storage) -> list[Path]:
    """Return the folders of the frozen texts of this machine."""
    homes = [home for home in folders_in(storage.raw()) if home.name != GPT2_FOLDER]
    return [folder for home in homes for folder in folders_in(home) if (folder / Made.FILE).exists()]


def models(storage: Storage) -> Iterator[Model]:
    """Yield the versions of this machine, of each name the oldest first, and copies of them in other places.

    A damaged copy says what was made of what where the version itself does not, or is not there.
    """
    root, copies = storage.models(), defaultdict[Path, list[Path]](list)
    for path in folders_under(root, set_aside=True):
        folder = path.with_name(undamaged(path.name))
        if _holds_a_model(path) or _is_version(folder, root):
            copies[folder].append(path)
    for folder in sorted(copies, key=lambda folder: (folder.parent, number_of(folder.name), folder.name)):
        found, kind = sorted(copies[folder]), "version" if _is_version(folder, root) else "copy"
        yield Model(kind, f"{folder.parent.name}@{folder.name}", folder, found, _first_lineage(found))


def _is_version(folder: Path, root: Path) -> bool:
    """Return whether a folder is where a version is."""
    return (
        VERSION.fullmatch(folder.name) is not None and folder.parent.parent == root and not is_set_aside(folder.parent)
    )


def _holds_a_model(folder: Path) -> bool:
    return (folder / LINEAGE_FILE).is_file() or any(folder.glob(f"*{ANY_WEIGHTS}"))


def _first_lineage(copies: Sequence[Path]) -> Lineage | Damaged:
    """Return where a version comes from, by the first of its copies that says it, or why none does."""
    damages = list[Damaged]()
    for copy in copies:
        try:
            return lineage_of_version(copy)
        except Damaged as damage:
            damages.append(damage)
    return damages[0]


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
