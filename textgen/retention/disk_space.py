"""What can go from a storage folder: nothing that a version, a running training, a trunk or a rollback needs.

A training that goes on holds the lock of its folder. Between two stages a run holds no lock, but it marks each folder
that it uses with the time: what was used in the last hour always stays.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from textgen.errors import Damaged
from textgen.files import all_held, lock_file, locked, remove
from textgen.model.find import number_of, numbers, read_champion
from textgen.retention.origins import (
    Made,
    Training,
    Trunks,
    folders_in,
    is_held,
    is_linked,
    is_set_aside,
    models,
    texts,
    trainings,
)
from textgen.storage import Storage
from textgen.text.tokenizer import TOKENIZER_FILE

log = logging.getLogger(__name__)

DAY_SECONDS = 24 * 3600
ALWAYS_SECONDS = 3600  # a run may be between two stages
# What is made under a hidden name and then renamed, and what is hidden before it is deleted:
LEFTOVER = re.compile(r"\.(?:download-.+|step-[0-9]{8}|v[0-9]+|.+\.(?:arrived|removed|[a-z0-9_]{8}))")
STAGES = ("raw", "processed", "checkpoints", "models", "reports", "drift", "wandb/pending", "wandb/champions", "cache")
SENT = "*.wandb.synced"  # what `wandb sync` leaves beside a run that it sent
KINDS = {
    "states": "states of a finished training",
    "unfinished": "a training that nobody went on with",
    "training": "a training of which no version is left",
    "tokens": "tokens that nothing needs",
    "text": "a text that nothing needs",
    "report": "figures of a text that is gone or goes",
    "wandb": "a W&B run that was sent",
    "damaged": "damaged, set aside",
    "leftover": "left by a process that was killed",
}
MAY_COME_INTO_USE = ("unfinished", "training", "tokens", "text", "report")  # and stay where they did of late


class Item(NamedTuple):
    """One thing that can go."""

    kind: str
    name: str  # its path under the root
    paths: tuple[Path, ...]
    bytes: int
    locks: tuple[Path, ...] = ()  # that are held while it is removed


@dataclass
class Space:
    """What can go, and why something could not be told."""

    items: list[Item]
    remarks: list[str]

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.items)


def find_removable(storage: Storage, days: float) -> Space:
    """Return what can go; nothing is written. What was used in the last `days` stays, if somebody may want it again."""
    return Survey(storage, time.time() - max(days * DAY_SECONDS, ALWAYS_SECONDS)).space()


def remove_items(storage: Storage, items: Sequence[Item], days: float) -> tuple[list[Item], list[str]]:
    """Remove things that can still go, in this order; return them, and in words what stays and why.

    Publishing waits meanwhile. A thing is renamed before it is deleted: a kill leaves no part of one under its name.
    """
    removed, stay = [], []
    with ExitStack() as stack:
        for home in folders_in(storage.models()):
            stack.enter_context(locked(home / ".lock", f"{home.name}: waiting for another process to publish"))
        limit = time.time() - max(days * DAY_SECONDS, ALWAYS_SECONDS)
        there = {item.name: item for item in Survey(storage, limit).space().items}
        for item in items:
            if (now := there.get(item.name)) is None or now.kind != item.kind:
                stay.append(f"{item.name} stays: it is in use now, or gone")
                continue
            with all_held(now.locks) as alone:
                may_be_used = now.kind in MAY_COME_INTO_USE
                if not alone or (may_be_used and max(map(last_change, now.paths)) > limit):
                    stay.append(f"{item.name} stays: it is in use now")
                elif may_be_used and stay:
                    stay.append(f"{item.name} stays: what stays may be made of it")
                else:
                    _remove(now, storage)
                    removed.append(now)
    return removed, stay


def _remove(item: Item, storage: Storage) -> None:
    if item.kind == "states" and storage.is_remote:  # the training is over for every machine
        known = {folder.name for folder in storage.folders(item.paths[0].parent, "step-*", whole=False)}
        for path in item.paths:
            if path.name in known:
                storage.delete(path)
    for path in item.paths:
        remove(path)
    log.info("%s: removed", item.name)


class Survey:
    """One look at all that is in a storage folder."""

    def __init__(self, storage: Storage, limit: float) -> None:
        self.storage, self.limit = storage, limit
        self.items, self.remarks = list[Item](), list[str]()
        self.trunks = Trunks(storage)
        self.needed = set[str]()  # folders under the root that a version was made of
        self.tokens_keys = set[str]()
        self.raw_keys = set[str]()
        self.tokenizers = set[str]()  # of unfinished trainings, whose tokens are told by them
        self.all_texts = self.all_tokens = self.all_needed = False  # where what is needed cannot be told

    def space(self) -> Space:
        """Return what can go."""
        self.look_at_versions()
        self.look_at_trainings()
        self.look_at_tokens()
        self.look_at_texts()
        self.look_at_wandb()
        going = {path for item in self.items for path in item.paths}
        for path in strays(self.storage):
            if not going.intersection(path.parents):
                self.look_at_stray(path)
        return Space(self.items, self.remarks)

    def look_at_versions(self) -> None:
        """Note what each version needs: all of them stay."""
        for model in models(self.storage):
            if isinstance(lineage := model.lineage, Damaged):
                self.all_needed = True
                self.remarks.append(f"{model.name}: {lineage}; until then no training, tokens or text can go")
                continue
            self.needed |= {lineage.raw.folder, lineage.tokens.folder, lineage.checkpoint.folder}
            self.raw_keys |= lineage.text_keys  # also of the models that it came from: a document in one can be found
            self.all_texts |= lineage.start is not None

    def look_at_trainings(self) -> None:
        """Find states and trainings, and note the tokens of those that stay."""
        for training in trainings(self.storage):
            kind = self.kind_of(training)
            if kind is not None:
                self.add(kind, training.folder, locks=locks_of(training.folder))
                continue
            if training.made is not None and not training.is_running and not is_linked(training.folder, self.storage):
                self.find_states(training)
            self.note_origin(training)

    def kind_of(self, training: Training) -> str | None:
        """Return what can go: None where a training is needed, or somebody may want it."""
        folder = training.folder
        if (
            training.is_running or training.is_damaged or not training.is_named_by_key
            or folder.parent != self.storage.training() or folder.is_symlink()
            or self.trunks.of(folder) or self.is_needed(folder) or self.is_recent(folder)
        ):  # fmt: skip
            return None
        return "unfinished" if training.made is None else "training"

    def find_states(self, training: Training) -> None:
        """Find the states of a finished training that no trunk names."""
        if states := [state for state in training.states if not self.trunks.keeps(state)]:
            name = f"{self.storage.name(training.folder)}/states"
            size = sum(map(size_of, states))
            self.items.append(Item("states", name, tuple(states), size, (lock_file(training.folder),)))

    def note_origin(self, training: Training) -> None:
        """Note the tokens and the texts of a training that stays."""
        if training.origin is not None:
            self.tokens_keys.add(training.origin.tokens_key)
            self.raw_keys |= {*training.origin.texts}
            self.all_texts |= training.start is not None
        elif (tokenizer := training.tokenizer_sha256) is not None:
            self.tokenizers.add(tokenizer)
        else:  # it has only begun
            self.all_tokens = True

    def look_at_tokens(self) -> None:
        """Find tokens that nothing needs, and note the texts of those that stay."""
        for folder in folders_in(self.storage.processed(), links=True):
            try:
                made = Made.parse(folder)
            except Damaged:  # who needs them notices, and sets them aside
                continue
            is_needed = folder.name in self.tokens_keys or made.tokenizer_sha256.get(TOKENIZER_FILE) in self.tokenizers
            if folder.is_symlink() or is_needed or self.all_tokens or self.is_needed(folder) or self.is_recent(folder):
                self.raw_keys.add(made.raw_key or "")
            else:
                self.add("tokens", folder, locks=locks_of(folder))

    def look_at_texts(self) -> None:
        """Find texts that nothing needs, and the figures of texts that do not stay."""
        staying = set[str]()
        all_stay = self.all_texts or self.all_tokens
        for folder in texts(self.storage):
            if all_stay or folder.name in self.raw_keys or self.is_needed(folder) or self.is_recent(folder):
                staying.add(folder.name)
            else:
                self.add("text", folder, locks=locks_of(folder))
        for folder in [*folders_in(self.storage.report()), *folders_in(self.storage.drift())]:
            try:
                made = Made.parse(folder)
            except Damaged:
                continue
            if made.raw_key not in staying and not self.is_recent(folder):
                self.add("report", folder, locks=locks_of(folder))

    def look_at_wandb(self) -> None:
        """Find the runs that `wandb sync` sent, and those that were sent as they went."""
        home = self.storage.local / "wandb"
        for folder in folders_in(home):
            was_sent_as_it_went = folder.name.startswith("run-") and not self.is_recent(folder)
            if "run-" in folder.name and (was_sent_as_it_went or any(folder.glob(SENT))):
                self.add("wandb", folder)

    def look_at_stray(self, path: Path) -> None:
        """Find what was set aside, and what killed processes left."""
        if is_set_aside(path):
            if not self.holds_a_number(path):
                self.add("damaged", path, locks_around(path, self.storage))
        elif last_change(path) < time.time() - ALWAYS_SECONDS:
            locks = locks_around(path, self.storage)
            if not any(map(is_held, locks)):
                self.add("leftover", path, locks)

    def holds_a_number(self, path: Path) -> bool:
        """Return whether a damaged version is the last one, or the champion: its number must not be given again."""
        home, version = path.parent, path.name.split(".")[0]
        if home.parent != self.storage.models() or not (number := number_of(version)):
            return False
        try:
            return number >= max(numbers(home), default=0) or read_champion(home) == version
        except Damaged:
            return True

    def is_needed(self, folder: Path) -> bool:
        return self.all_needed or self.storage.name(folder) in self.needed

    def is_recent(self, folder: Path) -> bool:
        return last_change(folder) > self.limit

    def add(self, kind: str, path: Path, locks: tuple[Path, ...] = ()) -> None:
        self.items.append(Item(kind, self.storage.name(path), (path,), size_of(path), locks))


def locks_of(folder: Path) -> tuple[Path, ...]:
    """Return the locks of a folder and of what is in it."""
    return lock_file(folder), *(path for path in sorted(folder.rglob(".*.lock")))


def locks_around(path: Path, storage: Storage) -> tuple[Path, ...]:
    """Return the locks of whoever may be making a thing. Those of models are held anyway."""
    if storage.models() in path.parents:
        return ()
    locks = dict.fromkeys(lock for lock in path.parent.glob(".*") if lock.name.endswith(".lock"))
    folders = [folder for folder in path.parents if storage.local in folder.parents]
    return tuple(locks | dict.fromkeys(lock for folder in folders if (lock := lock_file(folder)).exists()))


def strays(storage: Storage) -> Iterator[Path]:
    """Yield what was set aside and what has the hidden name of a thing that is being made or removed."""
    for folder in (storage.local, storage.local / "wandb"):
        yield from _strays(folder, deep=False)
    for stage in STAGES:
        yield from _strays(storage.local / stage, deep=True)


def _strays(folder: Path, deep: bool) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if is_set_aside(path) or (LEFTOVER.fullmatch(path.name) and not path.name.endswith(".lock")):
            yield path
        elif deep and path.is_dir() and not path.is_symlink():
            yield from _strays(path, deep)


def size_of(path: Path) -> int:
    """Return how many bytes a file, or the files in a folder, have."""
    return int(sum(_over(path, lambda one: one.lstat().st_size if one.is_file() and not one.is_symlink() else 0)))


def last_change(path: Path) -> float:
    """Return when a file, or something in a folder, was last changed: a time as `time.time()` has it."""
    return max(_over(path, lambda one: one.lstat().st_mtime), default=0.0)


def _over(path: Path, ask: Callable[[Path], float]) -> Iterator[float]:
    """Yield what `ask` says of a thing and of all that is in it, but for locks and what is gone meanwhile."""
    inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
    for one in (path, *inside):
        if one.name.endswith(".lock"):
            continue
        with suppress(FileNotFoundError):
            yield ask(one)
