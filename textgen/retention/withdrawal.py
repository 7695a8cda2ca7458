"""Withdrawing a document: the texts that hold it, and all that was made of them, here and in the remote root.

What was made goes before what it was made of, the text last: after a kill the same command finds the rest. While it is
not known of something whether it was made of the text, nothing goes: what would go may be what can tell.
"""

import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from textgen.config import root_option
from textgen.errors import Damaged, Failure
from textgen.files import REMOVED, all_held, hide, read_json, remove
from textgen.model.find import numbers, read_champion
from textgen.publishing.registry import opened, step_down, successor, withdraw
from textgen.publishing.upload import RECORD_FILE
from textgen.retention.derived import Derived
from textgen.retention.disk_space import Item, locks_around, locks_of, size_of, strays
from textgen.retention.find_document import Asked, Found, Place, find_document
from textgen.retention.origins import Made, is_held, text_keys, texts, trainings
from textgen.sections import DataConfig
from textgen.storage import Storage
from textgen.text.corpus import RawManifest
from textgen.text.tokenizer import GPT2_FOLDER, TOKENIZER_FILE

log = logging.getLogger(__name__)

ONLY_HERE = ("leftover", "record", "wandb")
UNCLEAR = (
    "nothing was removed: it is not known whether all that was made of it was found; repair or remove what the notes "
    "name, and give the same command again"
)
KINDS = {
    "version": "a version",
    "copy": "a copy of a version, under another name",
    "training": "a training",
    "unfinished": "a training that is not finished",
    "trunk": "a state from which longer trainings go on",
    "report": "figures of the text",
    "record": "a record of a stage",
    "wandb": "a record for W&B",
    "leftover": "left by a process that was killed",
    "tokens": "tokens",
    "text": "a text that holds it",
}


class Succession(NamedTuple):
    """What becomes of a champion that goes."""

    name: str
    champion: str
    successor: str | None
    others: list[str]  # versions that stay, where there is no champion any more

    def in_words(self, root: str) -> str:
        """Return it as a sentence, with a command for this storage root."""
        goes = f"{self.name}@champion is {self.champion}, which goes"
        if self.successor is not None:
            return f"{goes}: {self.successor}, the champion before it, becomes the champion again"
        by_hand = ""
        if self.others:
            by_hand = f", or `textgen models promote {self.others[-1]} --name {self.name}{root_option(root)}`"
        return f"{goes}, and no champion before it stays: {self.name} has no champion until a run promotes one{by_hand}"


@dataclass
class Withdrawal:
    """All that a document's withdrawal removes, in order of removal: the texts last, as the rest is found from them."""

    places: list[Place]
    items: list[Item] = field(default_factory=list)
    champions: list[Succession] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)  # why something else may be of the texts: until then nothing goes
    running: list[str] = field(default_factory=list)  # what is being made, and has to end first
    tokens_keys: set[str] = field(default_factory=set)
    weights: set[str] = field(default_factory=set)  # sha256 of all that were made of the texts

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.items)

    def of(self, *kinds: str) -> list[Item]:
        """Return the things of some kinds, in order."""
        return [item for item in self.items if item.kind in kinds]


def find_withdrawal(file: Path, data: DataConfig, storage: Storage) -> Withdrawal:
    """Return which texts hold the documents of `file`, whole or cut as each text was, and what was made of them.

    Texts and versions of a remote root are brought first, to be looked in.

    Raises:
        InputError: the file is absent, cannot be read or holds no text, or there is no text to look in.
        Damaged: no text holds it, and one could not be looked in.
    """
    asked = Asked(file, data, "--document")
    bring_all(storage)
    left = leftovers(storage)
    if left and not any((*texts(storage), *text_keys(storage))):  # a removal was killed at its very end
        found = Withdrawal([])
    else:
        there = find_document(asked, storage)
        found = _plan(there, storage) if there.places else Withdrawal([], unclear=Derived(storage, ()).unclear)
    found.items += [Item("leftover", storage.name(path), (path,), size_of(path)) for path in left]
    return found


def _plan(there: Found, storage: Storage) -> Withdrawal:
    """Return what is to be removed, the last that was made first."""
    derived = Derived(storage, raws := {place.raw for place in there.places})
    groups = [
        *((kind, [folder]) for folder, kind in reversed(derived.kinds.items())),
        ("trunk", derived.trunks()), ("report", derived.reports()), ("record", derived.records()),
        ("wandb", derived.wandb()), ("tokens", derived.tokens),
        ("text", [storage.local / raw for raw in sorted(derived.raws)]),
    ]  # fmt: skip
    found = Withdrawal(
        there.places, remarks=derived.remarks, unclear=[*there.missed, *derived.unclear],
        running=[*derived.running, *making(storage)], tokens_keys=derived.tokens_keys, weights=derived.weights,
    )  # fmt: skip
    for raw in sorted(raws):
        held, of = there.shares[raw]
        if held < of:
            found.remarks.append(f"{raw} holds {held} of the {of} documents in the file; it goes all the same")
    found.items = [_item(kind, path, storage) for kind, paths in groups for path in paths]
    for home in sorted({folder.parent for folder in derived.versions}):
        found.champions += _successions(home, [one.name for one in derived.versions if one.parent == home])
        if (home / RECORD_FILE).exists():
            found.remarks.append(_on_the_hub(home))
    if derived.versions:
        found.remarks.append(
            "`textgen serve` keeps what it has loaded: restart it; copies that left this storage stay: what was "
            "uploaded, sent to Weights & Biases or exported"
        )
    if storage.is_remote:
        found.remarks.append(
            f"each machine that uses {storage.root} has copies of its own, and trainings of its own that are not "
            "finished: end these, and give this command there too"
        )
    return found


def _item(kind: str, path: Path, storage: Storage) -> Item:
    """Return a thing with all its copies here, damaged ones too."""
    paths = (path, *sorted(path.parent.glob(f"{path.name}.damaged-*")))
    # `opened` holds those of versions; nobody works in a copy.
    locks = () if kind in ("version", "copy", *ONLY_HERE) else locks_of(path)
    return Item(kind, storage.name(path), paths, sum(map(size_of, paths)), locks)


def _successions(home: Path, gone: Collection[str]) -> list[Succession]:
    """Return what becomes of the champion of a name, nothing where it stays."""
    champion = read_champion(home)
    if champion is None or champion not in gone:
        return []
    before = successor(home, gone)
    others = [version for number in numbers(home) if (version := f"v{number}") not in gone]
    return [Succession(home.name, champion, before.version if before is not None else None, others)]


def _on_the_hub(home: Path) -> str:
    """Return what to do about a version that was uploaded."""
    with suppress(Damaged):
        record = read_json(home / RECORD_FILE)
        return f"{record.get('repo')} on the Hugging Face Hub has {home.name} {record.get('version')}: look there"
    return f"{home.name}: a version may be on the Hugging Face Hub: look there"


def carry_out_withdrawal(withdrawal: Withdrawal, storage: Storage) -> None:
    """Remove all of it.

    Raises:
        Failure: it is not known of something whether it was made of the texts, something of it is in use, or something
            that may read the texts runs: nothing was removed. Or something was made of the texts meanwhile: they are
            still there, and the same command removes the rest.
    """
    if withdrawal.unclear:
        raise Failure(UNCLEAR)
    locks = {lock for item in withdrawal.items for lock in item.locks}
    with all_held(locks) as alone:
        if not alone:
            raise Failure("something that is to go is in use: try again when the run that uses it has ended")
        if made := making(storage, locks):
            raise Failure(running_in_words(made))
        hidden = _hide_tokens(withdrawal, storage)
        try:
            _step_down(withdrawal.of("version"), storage)
        except BaseException:
            _show_again(hidden)
            raise
        texts = withdrawal.of("text")
        for item in withdrawal.items:
            if item in texts[:1]:
                _check_nothing_new(withdrawal, storage)
            if item.kind == "version":
                with opened(item.paths[0].parent, storage):
                    withdraw(item.paths[0].parent, item.paths[0].name, storage)
            else:
                _remove(item, storage)
            log.info("%s: removed", item.name)


def _check_nothing_new(withdrawal: Withdrawal, storage: Storage) -> None:
    """Check, while the texts are still there, that nothing was made of them since they were looked for.

    Raises:
        Failure: something was.
    """
    derived = Derived(storage, {place.raw for place in withdrawal.places}, withdrawal.weights)
    known = {one.name for one in withdrawal.items}
    new = sorted({storage.name(path) for path in [*derived.tokens, *derived.kinds]} - known) + derived.unclear
    if new:
        raise Failure(f"{', '.join(new)}: made of the text meanwhile; give the same command again")


def _hide_tokens(withdrawal: Withdrawal, storage: Storage) -> list[tuple[Path, Path]]:
    """Hide the tokens, so that no training can begin to read them, check that none does, and return where they are.

    Raises:
        Failure: one does; the tokens are where they were.
    """
    paths = [path for item in withdrawal.of("tokens") for path in item.paths if path.exists()]
    vocabularies, hidden = {None, *map(_vocabulary, paths)}, [(path, hide(path)) for path in paths]
    known = {path for item in withdrawal.items for path in item.paths}  # whose locks are ours
    others = [one for one in trainings(storage) if one.is_running and one.made is None and one.folder not in known]
    running = [
        storage.name(one.folder)
        for one in others
        if (one.origin.tokens_key in withdrawal.tokens_keys if one.origin else one.tokenizer_sha256 in vocabularies)
    ]
    if running:
        _show_again(hidden)
        raise Failure(running_in_words(running))
    return hidden


def _show_again(hidden: Sequence[tuple[Path, Path]]) -> None:
    for path, where in hidden:
        where.rename(path)


def making(storage: Storage, ours: Collection[Path] = ()) -> list[str]:
    """Return the texts and tokens that another process is making: it may be reading the text. `ours` are held here."""
    locks = [*storage.raw().glob("*/.*.lock"), *storage.processed().glob(".*.lock")]
    held = [lock for lock in locks if lock not in ours and lock.parent.name != GPT2_FOLDER and is_held(lock)]
    return [storage.name(lock.with_name(lock.name[1:].removesuffix(".lock"))) for lock in held]


def running_in_words(running: Sequence[str]) -> str:
    """Return what to do about what is being made of the text, perhaps."""
    return f"{', '.join(running)}: a run works there that may be on this text; end it and give the same command again"


def _step_down(items: Sequence[Item], storage: Storage) -> None:
    """Have every champion step down that is among versions that go."""
    folders = [item.paths[0] for item in items]
    for home in sorted({folder.parent for folder in folders}):
        with opened(home, storage):
            step_down(home, [folder.name for folder in folders if folder.parent == home], storage)


def _remove(item: Item, storage: Storage) -> None:
    for path in item.paths:
        if item.kind not in ONLY_HERE:
            for copy in (path, *storage.folders(path.parent, f"{path.name}.damaged-*", whole=False)):
                storage.delete(copy)
        for one in (path, path.with_name(f".{path.name}{REMOVED}")):
            if one.exists():
                remove(one)


def bring_all(storage: Storage) -> None:
    """Have all texts and versions of a remote root here, to be looked in."""
    for folder in storage.folders(storage.raw(), "*/*"):
        storage.bring(folder, RawManifest)
    for home in sorted({folder.parent for folder in storage.folders(storage.models(), "*/v*")}):
        with opened(home, storage):
            pass


def leftovers(storage: Storage) -> list[Path]:
    """Return what killed runs and removals left hidden, which may hold the text."""
    return [
        path
        for path in strays(storage)
        if path.name.startswith(".") and not any(map(is_held, locks_around(path, storage) or (path.parent / ".lock",)))
    ]


def _vocabulary(tokens: Path) -> str | None:
    """Return the sha256 of the tokenizer of tokens."""
    with suppress(Damaged):
        return Made.parse(tokens).tokenizer_sha256.get(TOKENIZER_FILE)
    return None
