"""Withdrawing a document: the texts that hold it, and all that was made of them, here and in the remote root.

What was made goes before what it was made of, the text last: after a kill the same command finds the rest. The text
stays while there is something that may have been made of it and does not say so.
"""

import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from textgen.errors import Damaged, Failure
from textgen.files import REMOVED, all_held, hide, read_json, remove
from textgen.model.find import numbers, read_champion
from textgen.publishing.registry import opened, step_down, successor, withdraw
from textgen.publishing.upload import RECORD_FILE
from textgen.retention.derived import Derived
from textgen.retention.disk_space import Item, locks_of, size_of
from textgen.retention.find_document import Asked, Place, find_document
from textgen.retention.origins import Made, texts, trainings
from textgen.sections import DataConfig
from textgen.storage import Storage
from textgen.text.corpus import RawManifest
from textgen.text.tokenizer import TOKENIZER_FILE

log = logging.getLogger(__name__)

ONLY_HERE = ("leftover", "record", "wandb")
KINDS = {
    "version": "a version",
    "copy": "a copy of a version, under another name",
    "training": "a training",
    "unfinished": "a training that is not finished",
    "trunk": "a state from which longer trainings go on",
    "report": "figures of the text",
    "record": "a record of a stage",
    "wandb": "a record for W&B",
    "leftover": "left by a removal that was killed",
    "tokens": "tokens",
    "text": "a text that holds it",
}


class Succession(NamedTuple):
    """What becomes of a champion that goes."""

    name: str
    champion: str
    successor: str | None
    others: list[str]  # versions that stay, where there is no champion any more

    def in_words(self) -> str:
        """Return it as a sentence."""
        goes = f"{self.name}@champion is {self.champion}, which goes"
        if self.successor is not None:
            return f"{goes}: {self.successor}, the champion before it, becomes the champion again"
        by_hand = f", or `textgen models promote {self.others[-1]} --name {self.name}`" if self.others else ""
        return f"{goes}, and no champion before it stays: {self.name} has no champion until a run promotes one{by_hand}"


@dataclass
class Withdrawal:
    """All that a document's withdrawal removes, in order of removal: the texts last, as the rest is found from them."""

    places: list[Place]
    items: list[Item] = field(default_factory=list)
    champions: list[Succession] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    unclear: list[str] = field(
        default_factory=list
    )  # what may have been made of the texts, which stay until it is known
    running: list[str] = field(default_factory=list)  # trainings that have to end first
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
    left = left_of_removals(storage)
    at_its_end = bool(left) and not texts(storage)  # a removal was killed at its very end
    places = [] if at_its_end else find_document(asked, storage)
    found = _plan(places, storage) if places else Withdrawal([])
    found.items += [Item("leftover", storage.name(path), (path,), size_of(path)) for path in left]
    return found


def _plan(places: list[Place], storage: Storage) -> Withdrawal:
    """Return what is to be removed, the last that was made first."""
    derived = Derived(storage, {place.raw for place in places})
    raws = sorted(derived.raws) if not derived.unclear else []
    groups = [
        *((kind, [folder]) for folder, kind in reversed(derived.kinds.items())),
        ("trunk", derived.trunks()), ("report", derived.reports()), ("record", derived.records()),
        ("wandb", derived.wandb()), ("tokens", derived.tokens),
        ("text", [storage.local / raw for raw in raws]),
    ]  # fmt: skip
    found = Withdrawal(
        places, remarks=derived.remarks, unclear=derived.unclear, running=derived.running,
        tokens_keys=derived.tokens_keys, weights=derived.weights,
    )  # fmt: skip
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
        Failure: something of it is in use, or a training that may read the text runs; nothing was removed. Or something
            was made of the text meanwhile: the text is still there, and the same command removes the rest.
    """
    with all_held(lock for item in withdrawal.items for lock in item.locks) as alone:
        if not alone:
            raise Failure("something that is to go is in use: try again when the run that uses it has ended")
        _hide_tokens(withdrawal, storage)
        _step_down(withdrawal.of("version"), storage)
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


def _hide_tokens(withdrawal: Withdrawal, storage: Storage) -> None:
    """Hide the tokens, so that no training can begin to read them, and check that none does.

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
        for path, where in hidden:
            where.rename(path)
        raise Failure(running_in_words(running))


def running_in_words(running: Sequence[str]) -> str:
    """Return what to do about trainings that run on the text."""
    return f"{', '.join(running)}: a training runs that may be on this text; end it and give the same command again"


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


def left_of_removals(storage: Storage) -> list[Path]:
    """Return what killed removals left hidden, which may hold the text still."""
    stages = [storage.raw(), storage.processed(), storage.training(), storage.models()]
    return [path for stage in stages if stage.is_dir() for path in sorted(stage.rglob(f".*{REMOVED}"))]


def _vocabulary(tokens: Path) -> str | None:
    """Return the sha256 of the tokenizer of tokens."""
    with suppress(Damaged):
        return Made.parse(tokens).tokenizer_sha256.get(TOKENIZER_FILE)
    return None
