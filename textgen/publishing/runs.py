"""Runs: the trainings of a storage root and what was published of them, and how one is found by any of its names.

Without torch, as `textgen runs list` reads it.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from textgen.config import VERSION
from textgen.errors import InputError
from textgen.files import Manifest, expand_home, read_json
from textgen.model.find import ModelManifest, bring_champion, bring_version, number_of
from textgen.publishing.index import Entry, Index, read_index
from textgen.publishing.version import PublishedManifest, read_lineage
from textgen.settings import default_values
from textgen.storage import Storage
from textgen.terminal import brief
from textgen.training.environment import Environment
from textgen.training.progress import Validation

LISTED = re.compile(rf"(\S+) ({VERSION.pattern})")  # as the list has a version
KEY_DIGITS = 8  # of a training that was not published, where it is named for people
FEWEST_DIGITS = 4  # of a key or of a flow run's id that name it


class Training(ModelManifest):
    """What a finished training says of itself, in the format of any commit."""

    config: dict[str, Any]
    device: str
    devices: int
    precision: str | None = None
    environment: Environment | None = None
    initial_sha256: str | None = None
    parameters: int
    steps: int
    best_step: int
    tokens_trained: int
    train_seconds: float
    speed: dict[str, Any]
    curve: list[Validation]

    @property
    def best_loss_nats(self) -> float:
        """Return the loss on validation, while training, of the weights that were kept."""
        return min(point.loss_nats for point in self.curve)


@dataclass(frozen=True)
class Run:
    """A training and what was published of it; one of both may be gone."""

    name: str  # as a person calls it
    training: Path | None
    version: Path | None


@dataclass(frozen=True)
class Row:
    """A run in the list."""

    name: str
    folder: str  # of the training under the root, or of the version where the training is gone
    when: datetime
    text: str  # in words
    changes: list[str]  # what differs from the run before
    steps: int | None
    validation: float | None  # nats a token, as it was evaluated; where it was not, the best while training
    test: float | None
    evaluated: bool
    champion: bool
    flow_runs: list[str]


def list_runs(storage: Storage) -> list[Row]:
    """Return the runs of a root, the oldest first.

    Raises:
        StorageUnavailable: the remote root did not answer.
    """
    index = dict(sorted(_present(storage).items(), key=lambda one: (one[1].when, one[0])))  # the oldest first
    versions: dict[str, list[str]] = {}  # of each training; a version whose training is gone stands for it
    evaluations: dict[str, dict[str, float]] = {}
    for path, entry in index.items():
        if entry.stage == "publish":
            home = entry.made_of if entry.made_of is not None and entry.made_of in index else path
            versions.setdefault(home, []).append(path)
        elif entry.stage == "evaluate" and entry.made_of is not None:
            evaluations[entry.made_of] = entry.figures  # the last one's
    listed = {path: entry for path, entry in index.items() if entry.stage == "train" or path in versions}
    champions = _champions(storage, index)
    rows: list[Row] = []
    before: Entry | None = None
    for path, entry in listed.items():
        published = sorted(versions.get(path, []), key=lambda version: number_of(version.split("/")[-1]))
        figures = {**entry.figures, **evaluations.get(path, {})}
        rows.append(
            Row(
                name=", ".join(map(_version_name, published)) or _short(path.split("/")[-1]),
                folder=path,
                when=entry.when,
                text=index[entry.text].what if entry.text is not None and entry.text in index else "not known",
                changes=[] if before is None else _changes(before, entry),
                steps=int(figures["steps"]) if "steps" in figures else None,
                validation=figures.get("validation"),
                test=figures.get("test"),
                evaluated=path in evaluations,
                champion=any(version in champions for version in published),
                flow_runs=sorted({run for one in (path, *published) for run in index[one].flow_runs}),
            )
        )
        before = entry
    return rows


def find_run(name: str, storage: Storage, model: str) -> Run:
    """Return the run of a version, of a training or of a flow run.

    Args:
        name: `NAME@v3`, `NAME v3` as in the list, which may have several, `NAME@champion`, `v3` or `champion` of
            `model`, a folder, or the beginning of a training's key or of a flow run's id.
        storage: Where the runs are.
        model: The name of the model that a version without a name is of.

    Raises:
        InputError: there is no such run, or there are several.
        Damaged: a record of it is not what was written.
        StorageUnavailable: the remote root did not answer.
    """
    if name == "champion" or VERSION.fullmatch(name):
        name = f"{model}@{name}"
    if listed := LISTED.fullmatch(name.split(", ")[0]):  # several versions of one training
        name = f"{listed[1]}@{listed[2]}"
    base, at, version = name.rpartition("@")
    if (folder := expand_home(name)).is_dir():
        return _run_in(folder, storage)
    if at:
        return _run_in(bring_version(base, version, storage), storage)
    index = _present(storage)
    found = (_by_flow_run(name, index) or _by_key(name, index)) if len(name) >= FEWEST_DIGITS else set()
    if not found:
        raise InputError(
            f"{brief(name)}: no such run; a run is NAME@v3, NAME@champion, a training's folder or key, or the id of a "
            "flow run; `textgen runs list` shows them"
        )
    if len(found) > 1:
        raise InputError(f"{brief(name)}: there are several: {', '.join(sorted(found))}")
    return _run_in(storage.inside(found.pop()), storage)


def read_training(folder: Path) -> Training:
    """Return what a training says of itself.

    Raises:
        Damaged: it is not finished, or that is not what was written.
    """
    return Training.parse(folder)


def _by_flow_run(name: str, index: Index) -> set[str]:
    """Return the versions, or else the trainings, of the flow runs whose ids begin so."""
    found: dict[str, dict[str, str]] = {}
    for path, entry in index.items():
        for run in entry.flow_runs:
            if run.startswith(name):
                found.setdefault(run, {})[entry.stage] = path
    paths = (by_stage.get("publish") or by_stage.get("train") for by_stage in found.values())
    return {path for path in paths if path is not None}


def _by_key(name: str, index: Index) -> set[str]:
    """Return the training whose key this is, or those whose keys begin so."""
    trainings = {path: path.split("/")[-1] for path, entry in index.items() if entry.stage == "train"}
    whole = {path for path, key in trainings.items() if key == name}
    return whole or {path for path, key in trainings.items() if key.startswith(name)}


def _run_in(folder: Path, storage: Storage) -> Run:
    """Return the run of a version's or a training's folder, brought from the remote root.

    Raises:
        InputError: it is neither.
    """
    storage.bring(folder, ModelManifest)
    if not (folder / Manifest.FILE).is_file():
        raise InputError(f"{folder}: neither a version nor a finished training")
    made = read_json(folder / Manifest.FILE)
    if "version" in made:
        training = storage.inside(read_lineage(folder, "checkpoint", "folder"))
        storage.bring(training, ModelManifest)
        there = (training / Manifest.FILE).is_file()
        return Run(f"{made['name']} {made['version']}", training if there else None, folder)
    if "curve" not in made:
        raise InputError(f"{folder}: neither a version nor a finished training")
    home = storage.training(folder.name)
    published = {
        other
        for other, entry in _present(storage).items()
        if entry.stage == "publish" and entry.made_of == storage.name(home)
    }
    if not published or not (home.is_dir() and home.samefile(folder)):  # a folder elsewhere may have any name
        return Run(_short(folder.name), folder, None)
    newest = max(published, key=lambda version: number_of(version.split("/")[-1]))
    storage.bring(storage.inside(newest), PublishedManifest)
    return Run(_version_name(newest), folder, storage.inside(newest))


def _present(storage: Storage) -> Index:
    """Return the index, here without what was deleted since; a remote root is not asked about each folder."""
    index = read_index(storage)
    if storage.is_remote:
        return index
    return {path: entry for path, entry in index.items() if storage.inside(path).is_dir()}


def _champions(storage: Storage, index: Index) -> set[str]:
    """Return the paths of the versions that are in use."""
    homes = {storage.inside(path).parent for path, entry in index.items() if entry.stage == "publish"}
    champions = set()
    for home in homes:
        if (version := bring_champion(home, storage)) is not None:
            champions.add(storage.name(home / version))
    return champions


def _changes(before: Entry, entry: Entry) -> list[str]:
    """Return in words what differs between two runs, the text first."""
    defaults = default_values()
    changes = ["other text"] if before.text != entry.text else []
    for key in sorted({*before.settings, *entry.settings}):
        last, new = (one.settings.get(key, defaults.get(key)) for one in (before, entry))
        if last != new:
            word = key.split(".")[-1]
            is_clear = sum(other.split(".")[-1] == word for other in defaults) == 1  # data and tokenizer have a path
            changes.append(f"{word if is_clear else key} {_shown(last)} to {_shown(new)}")
    return changes


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else "null" if value is None else brief(value)


def _version_name(path: str) -> str:
    return " ".join(path.split("/")[-2:])


def _short(name: str) -> str:
    """Return a training's key, or the name of its folder, shortened if it is a key.

    That of a training by `--force` keeps its key, which another one has too, and the beginning of its run's id.
    """
    key, dash, run = name.partition("-")
    if not re.fullmatch(r"[0-9a-f]{16}", key):
        return name
    return f"{key}-{run[:KEY_DIGITS]}" if dash else key[:KEY_DIGITS]
