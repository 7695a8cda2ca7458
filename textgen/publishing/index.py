"""data/index.json: what the folders that the stages made are, when they were made, from which text and settings.

Folders are named by keys; this file says what each is. On this machine it is one file, changed under a lock. An object
store has no lock: of two machines that changed one file there, one would lose its change. So a remote root has a small
file for each folder and run, in `index/`. Only one machine ever writes it, and each machine merges them.

Without torch, as `textgen runs list` reads it.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from textgen.config import Config
from textgen.errors import Damaged
from textgen.files import Manifest, content_key, read_json, set_aside, write_atomic
from textgen.publishing.version import LINEAGE_FILE, read_lineage
from textgen.sections import HELD_OUT
from textgen.settings import default_values, flat
from textgen.storage import Folders, Storage
from textgen.terminal import counted

INDEX_FILE = "index.json"
ENTRIES_FOLDER = "index"  # in a remote root
# By stage, the sections of the configuration that count from it on.
SECTIONS = {
    "fetch": ("data",), "tokenize": ("tokenizer",), "train": ("seed", "model", "training"),
    "evaluate": ("evaluation",), "publish": ("publish",),
}  # fmt: skip


class Entry(BaseModel):
    """What a folder is. A field that a later commit adds is ignored."""

    model_config = ConfigDict(frozen=True)

    stage: str  # fetch, tokenize, train, evaluate or publish
    what: str  # in words
    when: AwareDatetime  # it was made, in UTC
    name: str | None = None  # of the model, by the configuration
    made_of: str | None = None  # the folder of the stage before
    text: str | None = None  # the folder of the raw text
    settings: dict[str, Any] = {}  # by `section.key`, where they differ from the defaults
    figures: dict[str, float] = {}  # of a training and of an evaluation
    flow_runs: dict[str, AwareDatetime] = {}  # the runs that made it, and when

    def merged(self, other: "Entry") -> "Entry":
        """Return the older of both, with the runs of both."""
        first = min(self, other, key=lambda entry: entry.when)
        return first.model_copy(update={"flow_runs": {**self.flow_runs, **other.flow_runs}})


Index = dict[str, Entry]  # by the folder's path under the root


def note(storage: Storage, stage: str, manifest: Manifest, config: Config, flow_run: str | None) -> None:
    """Note in the index what a stage made in a run, or found that no run had noted.

    Raises:
        StorageUnavailable: the remote root did not answer.
    """
    home, *parts = storage.name(_places(storage)[stage]).split("/")
    path = "/".join([home, *manifest.folder.parts[-len(parts) :]])  # not by its links
    index = read_index(storage, whole=False)
    if path in index and not manifest.built:
        return
    entry = _describe(storage, stage, path, index).model_copy(
        update={
            "name": config.name,
            "settings": settings_that_differ(config.model_dump(mode="json", include=_sections(stage))),
        }
    )
    if flow_run is not None:
        entry = entry.model_copy(update={"flow_runs": {**entry.flow_runs, flow_run: datetime.now(UTC)}})
    _add(storage, {path: entry})
    data = json.dumps({path: entry.model_dump(mode="json")}).encode()
    storage.push_bytes(storage.local / ENTRIES_FOLDER / _entry_file(path, flow_run), data)


def read_index(storage: Storage, whole: bool = True) -> Index:
    """Return the index, after the entries of other machines were merged into it.

    With `whole` it has the folders too that are here and that no run noted, as those of earlier commits and of
    `textgen train`.

    Raises:
        StorageUnavailable: the remote root did not answer.
    """
    index = _read(storage)
    if storage.is_remote:
        known = {_entry_file(path, run) for path, entry in index.items() for run in entry.flow_runs or [None]}
        arrived: Index = {}
        for data in storage.read_files(storage.local / ENTRIES_FOLDER, known):
            with suppress(ValueError):  # it is somebody else's
                for path, entry in _parse(json.loads(data), storage):
                    arrived[path] = entry.merged(arrived[path]) if path in arrived else entry
        if arrived:
            index = _add(storage, arrived)
    if whole:
        for stage, pattern in _places(storage).items():
            for file in sorted(storage.local.glob(f"{storage.name(pattern)}/{Manifest.FILE}")):
                if (path := storage.name(file.parent)) not in index:
                    with suppress(Damaged, KeyError, TypeError, ValueError, StopIteration):  # it is no such folder
                        index[path] = _describe(storage, stage, path, index)
    return index


def settings_that_differ(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration by `section.key`, where they differ from the defaults."""
    defaults = default_values()
    return {key: value for key, value in flat(config).items() if key in defaults and value != defaults[key]}


def _sections(stage: str) -> set[str]:
    """Return the sections of the configuration that a stage and those before it depend on."""
    stages = list(SECTIONS)
    return {section for before in stages[: stages.index(stage) + 1] for section in SECTIONS[before]}


def _places(storage: Folders) -> dict[str, Path]:
    """Return where each stage, in order, leaves its folders, as a pattern."""
    return {
        "fetch": storage.raw("*") / "*",
        "tokenize": storage.processed("*"),
        "train": storage.training("*"),
        "evaluate": storage.training("*") / "evaluations" / "*",
        "publish": storage.models("*") / "v*",
    }


def _describe(storage: Folders, stage: str, path: str, index: Index) -> Entry:
    """Return what a folder's manifest says of it. The index has the folders that it was made of.

    Raises:
        Damaged: there is no manifest.
        KeyError, TypeError, ValueError, StopIteration: it is not what the stage writes.
    """
    folder = storage.inside(path)
    made = read_json(folder / Manifest.FILE)
    origin: str | None = None
    figures: dict[str, float] = {}
    settings: dict[str, Any] = {}
    text: str | None = None
    flow_runs: dict[str, datetime] = {}
    when = datetime.fromtimestamp((folder / Manifest.FILE).stat().st_mtime, UTC)
    match stage:
        case "fetch":
            text = path
            what = _text_in_words(made)
        case "tokenize":
            origin = next((other for other in index if other.split("/")[-1] == made["raw_key"]), None)
            tokens = sum(split["tokens"] for split in made["splits"].values())
            what = f"{tokens:,} tokens of {made['tokenizer']['kind']} with {made['vocab_size']:,} ids"
        case "train":
            origin = storage.name(storage.processed(made["tokens_key"]))
            best = next(point for point in made["curve"] if point["step"] == made["best_step"])
            figures = {"steps": made["steps"], "validation": best["loss_nats"]}
            settings = settings_that_differ(made["config"])
            what = f"{made['parameters']:,} parameters, {counted(made['steps'], 'step')}, {_losses_in_words(figures)}"
        case "evaluate":
            origin = storage.name(folder.parents[1])
            figures = {split: one["loss_nats"] for split, one in made["splits"].items()}
            what = f"{_losses_in_words(figures)} ({made['protocol']})"
        case _:
            origin, text = (read_lineage(folder, kind, "folder") for kind in ("checkpoint", "raw"))
            if (publisher := read_json(folder / LINEAGE_FILE)["flow_run"]) is not None:
                flow_runs = {publisher: when}
            what = f"{made['name']} {made['version']}, {'' if made['promoted'] else 'not '}promoted: {made['reason']}"
    if text is None and origin in index:
        text = index[origin].text
    return Entry(
        stage=stage, what=what, when=when, made_of=origin, text=text, settings=settings, figures=figures,
        flow_runs=flow_runs,
    )  # fmt: skip


def _text_in_words(raw: dict[str, Any]) -> str:
    source, words = raw["source"], sum(split["words"] for split in raw["splits"].values())
    match source["kind"]:
        case "files":
            name = counted(sum(len(sha256s) for sha256s in source["files"].values()), "file")
        case "folder":
            name = f"the folder {source['folder']}"
        case kind:
            name = " ".join(filter(None, [source.get("dataset_name", kind), source.get("dataset_config")]))
    return f"{name}, {counted(words, 'word')}"


def _losses_in_words(figures: dict[str, float]) -> str:
    losses = {split: figures[split] for split in HELD_OUT if split in figures}
    return ", ".join(f"{loss:.3f} nats a token on {split}" for split, loss in losses.items())


def _entry_file(path: str, flow_run: str | None) -> str:
    return f"{content_key(path, flow_run)}.json"


def _read(storage: Folders) -> Index:
    try:
        return dict(_parse(read_json(storage.local / INDEX_FILE), storage))
    except Damaged:  # or not there yet; who writes next sets it aside
        return {}


def _add(storage: Folders, entries: Index) -> Index:
    """Add entries to the file and return all of them. A damaged file is set aside: no folder is lost with it."""
    path = storage.local / INDEX_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{INDEX_FILE}.lock")):
        try:
            index = dict(_parse(read_json(path), storage))
        except Damaged as damage:
            if path.exists():
                set_aside(path, damage)
            index = {}
        for folder, entry in entries.items():
            index[folder] = index[folder].merged(entry) if folder in index else entry
        content = {folder: entry.model_dump(mode="json") for folder, entry in sorted(index.items())}
        write_atomic(path, json.dumps(content, indent=2) + "\n")
    return index


def _parse(content: Any, storage: Folders) -> Iterator[tuple[str, Entry]]:
    """Yield the entries of a file that are what they should be."""
    for folder, stored in content.items() if isinstance(content, dict) else ():
        with suppress(Damaged, ValidationError):
            storage.inside(folder)
            yield folder, Entry.model_validate(stored)
