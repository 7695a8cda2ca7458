"""data/index.json: what each folder is, by many writers, on machines that share only a remote root."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from textgen.config import Config, StorageConfig, parse_config
from textgen.files import Manifest, build_once
from textgen.publishing.index import INDEX_FILE, note, read_index
from textgen.storage import Storage

WRITERS, RUNS = 4, 5


class Text(Manifest):
    """The manifest of a frozen text, as far as the index reads it."""

    source: dict[str, Any] = Field({"kind": "files", "files": {"all": ["0" * 64]}})
    splits: dict[str, Any] = Field({"train": {"words": 1200}})

    def sha256_by_file(self) -> dict[str, str]:
        return {}


def freeze(storage: Storage, key: str = "0123456789abcdef") -> Text:
    """Make the folder of a frozen text."""
    return build_once(storage.raw("notes") / key, Text, lambda folder: Text(key=key))


def note_runs(root: Path, writer: int) -> None:
    """Note runs of a writer, in a process of its own."""
    storage = Storage.at(root)
    for run in range(RUNS):
        text = freeze(storage, f"{writer}{run}".rjust(16, "0"))
        note(storage, "fetch", text, Config(), f"run-{writer}-{run}")


def test_an_entry_says_what_when_and_from_which_settings(tmp_path):
    storage = Storage.at(tmp_path)
    config = parse_config({
        "name": "mine", "data": {"files": "notes"}, "training": {"max_steps": 2000},
        "storage": {"root": "s3://user:password@bucket"},
    })  # fmt: skip
    note(storage, "fetch", freeze(storage), config, "run-1")
    content = json.loads((tmp_path / INDEX_FILE).read_text())
    (entry,) = content.values()
    assert list(content) == ["raw/notes/0123456789abcdef"]
    assert (entry["what"], entry["name"], list(entry["flow_runs"])) == ("1 file, 1,200 words", "mine", ["run-1"])
    assert entry["settings"] == {"data.files": "notes"}  # what a text depends on, and no address of a storage
    assert entry["when"].endswith("Z")


def test_writers_at_the_same_time_lose_no_entry(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=note_runs, args=(tmp_path, writer)) for writer in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(json.loads((tmp_path / INDEX_FILE).read_text())) == WRITERS * RUNS


def test_machines_that_share_a_remote_root_lose_no_entry_of_each_other(here, there, remote_root, tmp_path):
    """Each of them alone writes its entries: in one file of the remote root, the second would undo the first."""
    for machine, key in ((here, "a" * 16), (there, "b" * 16)):
        note(machine, "fetch", freeze(machine, key), Config(), "run-1")
    third = Storage(StorageConfig(root=remote_root, cache=str(tmp_path / "third")))
    for machine in (here, there, third):
        assert set(read_index(machine)) == {f"raw/notes/{'a' * 16}", f"raw/notes/{'b' * 16}"}


def test_an_entry_has_the_runs_of_each_machine(here, there):
    for machine, run in ((here, "run-1"), (there, "run-2")):
        note(machine, "fetch", freeze(machine), Config(), run)
    (entry,) = read_index(here).values()
    assert set(entry.flow_runs) == {"run-1", "run-2"}


@pytest.mark.parametrize("damage", ["{", "[]", '{"../../etc": {}}'])
def test_a_damaged_index_is_no_reason_to_fail(tmp_path, damage):
    storage = Storage.at(tmp_path)
    (tmp_path / INDEX_FILE).write_text(damage)
    assert read_index(storage) == {}
    note(storage, "fetch", freeze(storage), Config(), "run-1")
    assert set(read_index(storage)) == {"raw/notes/0123456789abcdef"}


def test_what_no_run_noted_is_read_from_the_folders(rivals):
    second, _ = rivals
    index = read_index(Storage(second.config.storage))
    assert not (second.config.root / INDEX_FILE).exists()
    version = index["models/textgen/v2"]
    assert list(version.flow_runs) == ["run-2"]
    training = index[version.made_of]
    assert training.figures["steps"] == 40
    assert training.settings["training.max_steps"] == 40
    assert index[training.text].what.startswith("3 files, ")


def test_a_run_that_makes_nothing_writes_nothing(here):
    note(here, "fetch", freeze(here), Config(), "run-1")
    before = (here.local / INDEX_FILE).stat().st_mtime_ns
    note(here, "fetch", freeze(here), Config(), "run-2")
    assert (here.local / INDEX_FILE).stat().st_mtime_ns == before
