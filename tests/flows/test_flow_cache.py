"""What the flow does not make twice, and what it makes anew: where something changed, or is damaged."""

import base64
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.stage import can_be_loaded
from tests.flow_runs import STAGES, cached, run_flow, tiny
from textgen.publishing.index import read_index
from textgen.publishing.runs import find_run
from textgen.storage import Storage
from textgen.text import tokens
from textgen.text.corpus import RawManifest

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_a_second_run_does_nothing_and_says_the_same(finished, folder):
    _, first = finished
    used = [Path(first[stage]["path"]) for stage in ("raw", "tokens", "checkpoint", "published")]
    for path in used:
        os.utime(path, (0, 0))
    second = run_flow(tiny(folder))
    assert cached(second) == list(STAGES)
    assert all(path.stat().st_mtime > 0 for path in used)  # by which `textgen clean` knows what is in use
    assert {**second, "run_id": 0, "stages": 0} == {**first, "run_id": 0, "stages": 0}


def test_the_index_says_what_each_stage_made_and_in_which_run(folder, finished):
    storage, run_id = Storage.at(folder / "data"), finished[1]["run_id"]
    index = read_index(storage, whole=False)
    assert sorted(entry.stage for entry in index.values()) == sorted(STAGES)
    assert all(list(entry.flow_runs) == [run_id] for entry in index.values())
    assert len({entry.text for entry in index.values()}) == 1
    assert find_run(run_id, storage, "textgen").version == storage.models("textgen") / "v1"
    again = run_flow(tiny(folder, training={"max_steps": 7}))["run_id"]
    assert find_run(again, storage, "textgen").version == storage.models("textgen") / "v2"


@pytest.mark.parametrize(
    ("file", "rebuilt"),
    [
        ("raw/**/train.parquet", ["fetch"]),
        ("processed/**/train.pt", ["tokenize"]),
        ("processed/**/manifest.json", ["tokenize"]),
        ("checkpoints/*/model.safetensors", ["train"]),
        ("checkpoints/**/evaluations/*/manifest.json", ["evaluate"]),
        ("models/**/model.safetensors", ["publish"]),
    ],
)
def test_a_flipped_byte_is_named_set_aside_and_rebuilt(finished, folder, caplog, file, rebuilt):
    _, before = finished
    (path,) = (folder / "data").glob(file)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    after = run_flow(tiny(folder))
    assert str(path) in caplog.text
    assert [path for path in (folder / "data").rglob("*.damaged-1")]
    assert cached(after) == [name for name in STAGES if name not in rebuilt]
    assert after["checkpoint"]["sha256"] == before["checkpoint"]["sha256"]
    assert after["tokens"] == before["tokens"]
    assert cached(run_flow(tiny(folder))) == list(STAGES)


def test_a_change_is_a_miss_from_its_stage_on(folder, monkeypatch):
    assert cached(run_flow(tiny(folder, evaluation={"protocol": "blocks"}))) == [
        "fetch",
        "tokenize",
        "train",
        "publish",
    ]
    assert cached(run_flow(tiny(folder, seed=5))) == ["fetch", "tokenize"]
    assert cached(run_flow(tiny(folder, tokenizer={"vocab_size": 270}))) == ["fetch"]
    monkeypatch.setattr(tokens, "TOKENS_VERSION", tokens.TOKENS_VERSION + 1)
    assert cached(run_flow(tiny(folder))) == ["fetch", "publish"]  # the same tokens again, so the same checkpoint
    monkeypatch.undo()
    with (folder / "test.txt").open("a") as file:
        file.write("one more row\n")
    assert cached(run_flow(tiny(folder))) == ["publish"]


def test_prefect_forgetting_everything_costs_no_work(finished, folder):
    _, before = finished
    shutil.rmtree(folder / "data" / "cache")
    written = {path: path.stat().st_mtime_ns for path in (folder / "data").rglob("*") if path.is_file()}
    after = run_flow(tiny(folder))
    assert after["published"] == before["published"]
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in written.items() if not path.name.endswith("lock"))


def test_a_record_that_is_not_ours_is_set_aside_and_loads_nothing(folder, tmp_path, caplog):
    """An older version's class, no JSON at all, a pickle, a library of the record's choice, a class within the data."""
    loaded = tmp_path / "loaded"
    pickled = base64.encodebytes(pickle.dumps(Loaded(loaded))).decode()

    def change(stage: str, alter: Callable[[dict[str, Any]], None]) -> Path:
        (path,) = (folder / "data" / "cache").glob(f"{stage}-*")
        content = json.loads(path.read_bytes())
        alter(content)
        path.write_text(json.dumps(content))
        return path

    def rename_class(content: dict[str, Any]) -> None:
        content["result"] = content["result"].replace("textgen.", "textgen.before.", 1)

    def hide_class(content: dict[str, Any]) -> None:
        content["result"] = content["result"].replace(
            '"data": {', '"data": {"source": {"__class__": "os.PathLike"}, ', 1
        )

    records = [
        change("fetch", rename_class),
        change("train", lambda content: content.update(metadata={"serializer": {"type": "pickle"}}, result=pickled)),
        change("evaluate", lambda content: content["metadata"]["serializer"].update(jsonlib="pickle")),
        change("publish", hide_class),
    ]
    (record,) = (folder / "data" / "cache").glob("tokenize-*")
    record.write_bytes(pickle.dumps(Loaded(loaded)))
    result = run_flow(tiny(folder))
    assert cached(result) == list(STAGES), "what the stages made is still there"
    assert not loaded.exists()
    for path in [*records, record]:
        assert f"{path} is not a record of a " in caplog.text
        assert path.with_name(f"{path.name}.damaged-1").exists()
    assert cached(run_flow(tiny(folder))) == list(STAGES)


def test_a_record_that_says_something_else_than_its_folder_is_not_believed(finished, folder, caplog):
    _, first = finished
    (path,) = (folder / "data" / "cache").glob("evaluate-*")
    content = json.loads(path.read_bytes())
    content["result"] = re.sub(r'"loss_nats": [0-9.]+', '"loss_nats": 0.001', content["result"])
    path.write_text(json.dumps(content))
    assert run_flow(tiny(folder))["metrics"] == first["metrics"]
    assert "its manifest says something else than the cached record" in caplog.text


def test_a_record_that_cannot_be_read_is_a_miss(tmp_path, caplog):
    is_a_folder, is_deep = tmp_path / "fetch-1", tmp_path / "fetch-2"
    is_a_folder.mkdir()
    is_deep.write_text("[" * 100_000)
    for record in (is_a_folder, is_deep):
        assert can_be_loaded(record, RawManifest)
        assert f"{record} is not a record of a RawManifest" in caplog.text
        assert not record.exists()
    below_a_file = tmp_path / "fetch-2.damaged-1" / "fetch-3"
    assert not can_be_loaded(below_a_file, RawManifest)
    assert f"{below_a_file} cannot be read (Not a directory)" in caplog.text


class Loaded:
    """What makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)
