"""The registry: published versions that never change, and the champion, the version in use, moved by one rename."""

import logging
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from textgen.config import VERSION, Config
from textgen.errors import Damaged, InputError
from textgen.files import locked, remove, set_aside, write_atomic
from textgen.model.find import (
    CHAMPION_FILE,
    NO_CHAMPION,
    bring_champion,
    find_version,
    number_of,
    numbers,
    read_champion,
)
from textgen.publishing.version import CLAIM_FILE, PublishedManifest, read_lineage
from textgen.storage import Storage
from textgen.text.corpus import RawManifest
from textgen.training.folder import texts_of

log = logging.getLogger(__name__)

HISTORY_FILE = "history.json"
WITHDRAWN = ".withdrawn"  # ends the name of a file beside the versions: of one that was removed with its text


Version = Annotated[str, Field(pattern=rf"^{VERSION.pattern}$")]


class History(BaseModel):
    """Past champions, oldest first, for a rollback.

    The history is written before the champion file, so a crash between the two writes changes nothing. Entries after
    the current champion are left over from a rollback or an interrupted promotion; they are ignored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    champions: list[Version] = []  # oldest first
    # The newest version when somebody chose the champion by hand; older ones stay unpromoted.
    settled: Version | None = None

    def until(self, champion: str | None) -> list[str]:
        """Return the champions up to and including the current one."""
        if champion is None:
            return []
        if champion not in self.champions:
            return [champion]
        last = len(self.champions) - 1 - self.champions[::-1].index(champion)
        return self.champions[: last + 1]


@contextmanager
def opened(home: Path, storage: Storage) -> Iterator[None]:
    """Lock the models of `home` on this machine and bring them from the remote root while the block runs."""
    home.mkdir(parents=True, exist_ok=True)
    busy = f"{home.name}: waiting for another process, that publishes or promotes, to end"
    with locked(home / ".lock", busy):
        for leftover in [*home.glob(".v[0-9]*"), *home.glob(f".{CHAMPION_FILE}.*"), *home.glob(f".{HISTORY_FILE}.*")]:
            if leftover.is_dir():  # of a process that was killed
                shutil.rmtree(leftover)
            elif leftover.suffix != ".lock":
                leftover.unlink()
        for folder in storage.folders(home, "v*"):
            if VERSION.fullmatch(folder.name):
                storage.bring(folder, PublishedManifest)
        storage.bring_file(home / HISTORY_FILE)
        storage.bring_file(home / CHAMPION_FILE)
        yield


@contextmanager
def opened_to_read(home: Path, storage: Storage) -> Iterator[None]:
    """Have the models of `home` here, as they are in the remote root, while the block reads them.

    A local root is not locked: versions never change, and versions and the champion move by one rename. A version may
    disappear between two reads.
    """
    if storage.is_remote:
        with opened(home, storage):
            yield
    else:
        yield


def promote(home: Path, version: str, storage: Storage) -> PublishedManifest:
    """Make a version the champion, by hand, and return its manifest.

    Raises:
        InputError: there is no such version, here or in the remote root.
        Damaged: it is not what was published.
    """
    with opened(home, storage):
        manifest = PublishedManifest.read(find_version(home, version))
        if version not in _everywhere(home, storage):
            raise InputError(
                f"{home.name}@{version}: it is not in {storage.root}: another machine deleted it, or the run that made "
                "it did not end; the same command of that run goes on"
            )
        try:
            champion = read_champion(home)
            past = read_history(home).until(champion)
        except Damaged as damage:  # which of its entries was the champion is lost: a rollback may return to any
            set_aside(home / CHAMPION_FILE, damage)
            champion, past = None, read_history(home).champions
        if champion != version:
            history = History(champions=[*past, version], settled=f"v{numbers(home)[-1]}")
            _write(home, history, version, storage)
        return manifest


def rollback(home: Path, storage: Storage) -> PublishedManifest:
    """Make the champion before this one the champion again and return its manifest.

    Raises:
        InputError: there was none before.
        Damaged: it is not what was published.
    """
    with opened(home, storage):
        champion = read_champion(home)
        there = _everywhere(home, storage)
        before = [version for version in read_history(home).until(champion) if version in there]
        while before and before[-1] == champion:
            before.pop()
        if not before:
            raise InputError(f"{home.name}: there is no champion before {champion or 'the first'} to go back to")
        manifest = PublishedManifest.read(home / before[-1])
        history = History(champions=[*before, champion], settled=f"v{numbers(home)[-1]}")
        _write(home, history, before[-1], storage)
        return manifest


def _everywhere(home: Path, storage: Storage) -> set[str]:
    """Return the versions that are here and, with a remote root, there too: another machine may have deleted some."""
    here = {f"v{number}" for number in numbers(home)}
    return here & {folder.name for folder in storage.folders(home, "v*")} if storage.is_remote else here


def settle(home: Path, manifest: PublishedManifest, storage: Storage) -> None:
    """Promote a version that is to be promoted, unless a newer one or a choice by hand stands.

    This also completes a publish that was killed. The caller holds `opened`.
    """
    champion, history, number = read_champion(home), read_history(home), number_of(manifest.version)
    if manifest.promoted and all(other is None or number_of(other) < number for other in (champion, history.settled)):
        champions = [*history.until(champion), manifest.version]
        _write(home, History(champions=champions, settled=history.settled), manifest.version, storage)


def prune(home: Path, keep_versions: int | None, storage: Storage) -> list[str]:
    """Delete all but the newest versions, the champion and the one a rollback returns to; return which.

    `opened` holds the models.
    """
    if keep_versions is None:
        return []
    there = [f"v{number}" for number in numbers(home)]
    champions = [version for version in read_history(home).until(read_champion(home)) if version in there]
    kept = {*there[-keep_versions:], *champions[-2:]}
    remote = {folder.name for folder in storage.folders(home, "v*")}
    deleted = [version for version in there if version not in kept]
    for version in deleted:
        if version in remote:
            storage.delete(home / version)
        remove(home / version)
    return deleted


def successor(home: Path, versions: Collection[str]) -> PublishedManifest | None:
    """Return the version that is the champion when `versions` are gone: the newest sound champion before, if any.

    Raises:
        Damaged: the champion file names no version.
    """
    for version in reversed(read_history(home).until(read_champion(home))):
        if version not in versions and (home / version).is_dir():
            with suppress(Damaged):
                return PublishedManifest.read(home / version)
    return None


def step_down(home: Path, versions: Collection[str], storage: Storage) -> None:
    """Have the champion before be the champion again where the champion is one of `versions`, which are to go.

    Without one there is no champion. No version that is there is promoted by a later run. `opened` holds the models.
    """
    if (champion := read_champion(home)) in versions:
        before = successor(home, versions)
        kept = [version for version in read_history(home).until(champion) if version not in versions]
        history = History(champions=kept, settled=f"v{max([*numbers(home), *map(number_of, versions)])}")
        _write(home, history, before.version if before is not None else NO_CHAMPION, storage)


def withdraw(home: Path, version: str, storage: Storage) -> None:
    """Remove a version that is not the champion, here and in the remote root. `opened` holds the models.

    Its number is not given again: a file tells what became of it.
    """
    note = home / f"{version}{WITHDRAWN}"
    write_atomic(note, f"withdrawn on {datetime.now(UTC).date()}, with the text that it was trained on\n")
    storage.push_file(note)
    storage.delete(home / version)
    storage.claim(home / version / CLAIM_FILE)
    for path in [home / version, *home.glob(f"{version}.damaged-*")]:
        if path.exists():
            remove(path)


def _write(home: Path, history: History, champion: str, storage: Storage) -> None:
    """Write the history and then, in one change that counts, the champion."""
    write_atomic(home / HISTORY_FILE, history.model_dump_json(indent=2) + "\n")
    storage.push_file(home / HISTORY_FILE)
    write_atomic(home / CHAMPION_FILE, champion + "\n")
    storage.push_file(home / CHAMPION_FILE)


def read_history(home: Path) -> History:
    """Return how the champion came to be; without a sound file, by what each version says of its promotion."""
    file = home / HISTORY_FILE
    try:
        return History.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        pass  # as before there was one
    except ValidationError as error:
        set_aside(file, Damaged(f"{file} is damaged: {error.errors()[0]['msg']}"))
    champions = []
    for number in numbers(home):
        with suppress(Damaged):
            manifest = PublishedManifest.parse(home / f"v{number}")
            champions += [f"v{number}"] if manifest.promoted else []
    return History(champions=champions)


def read_sound(home: Path, storage: Storage) -> tuple[list[PublishedManifest], PublishedManifest | None]:
    """Return the versions that verify and the champion among them; a damaged one is set aside.

    A damaged champion is replaced by the newest sound champion before it; the second is None if there is none, and
    before the first champion. `opened` holds the models.
    """
    champion, history = read_champion(home), read_history(home)  # which may be by what a damaged version says
    sound = {manifest.version: manifest for manifest in _read_versions(home)}
    before = history.until(champion)
    while before and before[-1] not in sound:
        before.pop()
    if not before:
        return list(sound.values()), None
    if champion is not None and before[-1] != champion:
        log.warning(
            "%s: the champion, %s, is not sound: %s, the champion before it, is the champion again",
            home.name, champion, before[-1],
        )  # fmt: skip
        _write(home, History(champions=[*before, champion], settled=history.settled), before[-1], storage)
    return list(sound.values()), sound[before[-1]]


def _read_versions(home: Path) -> list[PublishedManifest]:
    manifests = []
    for number in numbers(home):
        folder = home / f"v{number}"
        try:
            manifests.append(PublishedManifest.read(folder))
        except Damaged as damage:
            set_aside(folder, damage)
    return manifests


def find_champion(config: Config, storage: Storage) -> Path | None:
    """Return the folder of the version in use, None before there is one."""
    home = storage.models(config.name)
    if (version := bring_champion(home, storage)) is None:
        return None
    storage.bring(home / version, PublishedManifest)
    return home / version


def trained_text(champion: PublishedManifest, storage: Storage) -> RawManifest:
    """Return the text that the champion was trained on.

    Raises:
        Damaged: it is no longer there, or is not what it was.
    """
    folder = storage.inside(read_lineage(champion.folder, "raw", "folder"))
    storage.bring(folder, RawManifest)
    return RawManifest.read(folder)


def earlier_texts(champion: PublishedManifest, storage: Storage) -> list[RawManifest]:
    """Return the other texts that the champion came from: those of the models that its training started from.

    A text that is not here, as that of a model from elsewhere, is left out, and the log says so.

    Raises:
        Damaged: one is not what it was.
    """
    texts, (keys, are_all) = list[RawManifest](), texts_of(champion.folder)
    missing = [] if are_all else ["a text that it does not name"]
    for key in keys[1:]:
        found = [*storage.raw().glob(f"*/{key}"), *storage.folders(storage.raw(), f"*/{key}")]
        if not found:
            missing.append(f"the text {key}")
            continue
        storage.bring(found[0], RawManifest)
        text = RawManifest.read(found[0])
        texts += [text] if champion.raw_sha256.get("train") != text.splits["train"].sha256 else []
    if missing:
        log.warning(
            "%s started from a model of %s, which is not here: documents that it was trained on there are not left out",
            champion.version, " and ".join(missing),
        )  # fmt: skip
    return texts
