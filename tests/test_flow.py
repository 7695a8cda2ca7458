"""The flow, end to end on a tiny configuration: what it makes, what it does not make twice, what it refuses."""

import json
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.train_flow import check_files, main, summarize, train_flow
from textgen import tokens
from textgen.config import SPLITS, Config, parse_config
from textgen.files import InputError
from textgen.registry import resolve

ROOT = Path(__file__).parents[1]
STAGES = ("fetch", "tokenize", "train", "evaluate", "publish")
pytestmark = pytest.mark.usefixtures("prefect_server")
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "birds"]


def tiny(folder: Path, **changes: Any) -> Config:
    draw = random.Random(0)
    for split in SPLITS:
        path = folder / f"{split}.txt"
        if not path.exists():
            path.write_text("\n".join(" ".join(draw.choices(WORDS, k=20)) for _ in range(60)) + "\n")
    values = {
        "data": {"files": {split: str(folder / f"{split}.txt") for split in SPLITS}, "seq_length": 16},
        "tokenizer": {"kind": "bpe", "vocab_size": 300},
        "model": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        "training": {"batch_size": 4, "max_steps": 6, "warmup_steps": 2, "eval_every": 3},
        "evaluation": {"stride": 8},
        "publish": {"policy": "always"},  # a model of six steps does not beat a unigram model
        "tracking": {"mode": "disabled"},
        "storage": {"root": str(folder / "data")},
    }
    for section, keys in changes.items():
        values[section] = {**values[section], **keys} if isinstance(keys, dict) else keys
    return parse_config(values)


def run_flow(config: Config, **parameters: Any) -> dict[str, Any]:
    path = config.root.with_suffix(".yaml")
    path.write_text(json.dumps(config.model_dump(mode="json")), "utf-8")
    return train_flow(str(path), **parameters)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the result of one run, for tests that copy the folder and go on from there."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run_flow(tiny(folder))


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """Return a copy of a finished run's folder: its own text files and its data."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def cached(result: dict[str, Any]) -> list[str]:
    return [name for name, report in result["stages"].items() if report["cached"]]


def test_the_flow_makes_a_published_model_out_of_text(finished):
    _, result = finished
    assert list(result["stages"]) == list(STAGES)
    assert cached(result) == []
    assert set(result) == {
        "run_id", "config", "raw", "tokens", "drift", "checkpoint", "metrics", "published", "champion", "hub_commit",
        "stages",
    }  # fmt: skip
    assert set(result["metrics"]) == {"validation", "test"}
    published = result["published"]
    assert (published["version"], published["promoted"]) == ("v1", True)
    assert len(published["samples"]) == 3
    files = {path.name for path in Path(published["path"]).iterdir()}
    assert files >= {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "README.md", "metrics.json", "lineage.json",
    }  # fmt: skip
    json.dumps(result)


def test_a_second_run_does_nothing_and_says_the_same(finished):
    folder, first = finished
    second = run_flow(tiny(folder))
    assert cached(second) == list(STAGES)
    assert {**second, "run_id": 0, "stages": 0} == {**first, "run_id": 0, "stages": 0}


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
def test_a_flipped_byte_is_named_set_aside_and_rebuilt(folder, caplog, file, rebuilt):
    before = run_flow(tiny(folder))
    (path,) = (folder / "data").glob(file)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    caplog.clear()
    after = run_flow(tiny(folder))
    assert str(path) in caplog.text
    assert [path for path in (folder / "data").rglob("*.damaged-1")]
    assert cached(after) == [name for name in STAGES if name not in rebuilt]
    assert after["checkpoint"]["sha256"] == before["checkpoint"]["sha256"]
    assert after["tokens"] == before["tokens"]
    assert cached(run_flow(tiny(folder))) == list(STAGES)


def test_a_change_is_a_miss_from_its_stage_on(folder, monkeypatch):
    run_flow(tiny(folder))
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


def test_prefect_forgetting_everything_costs_no_work(folder):
    before = run_flow(tiny(folder))
    shutil.rmtree(folder / "data" / "cache")
    written = {path: path.stat().st_mtime_ns for path in (folder / "data").rglob("*") if path.is_file()}
    after = run_flow(tiny(folder))
    assert after["published"] == before["published"]
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in written.items() if not path.name.endswith("lock"))


def test_a_run_in_a_moved_folder_is_not_led_back_to_the_old_place(finished, folder):
    config = tiny(folder)
    result = run_flow(config)
    assert Path(result["published"]["path"]).is_relative_to(folder)
    assert Path(result["raw"]["path"]).is_relative_to(folder)


def test_a_better_model_takes_over_and_a_worse_one_does_not(folder):
    better = run_flow(tiny(folder, training={"max_steps": 40}, publish={"policy": "gate"}))["published"]
    assert (better["version"], better["promoted"]) == ("v2", True)
    worse = run_flow(tiny(folder, training={"max_steps": 3}, publish={"policy": "gate"}))["published"]
    assert (worse["version"], worse["promoted"]) == ("v3", False)
    assert resolve("textgen@champion", folder / "data").name == "v2"
    assert resolve("textgen@v3", folder / "data").name == "v3"
    with pytest.raises(InputError, match="v1, v2, v3"):
        resolve("textgen@v9", folder / "data")


def test_a_published_version_is_promoted_when_the_policy_becomes_always(folder, capsys):
    other = {"training": {"max_steps": 3}}
    never = run_flow(tiny(folder, publish={"policy": "never"}, **other))
    assert (never["published"]["promoted"], never["champion"]) == (False, "v1")
    always = run_flow(tiny(folder, publish={"policy": "always"}, **other))
    assert (always["published"]["version"], always["champion"]) == ("v2", "v2")
    assert (always["published"]["promoted"], always["published"]["reason"]) == (True, "publish.policy=always")
    summarize(always)
    assert "textgen v2: promoted (publish.policy=always); the champion\n" in capsys.readouterr().out
    summarize(never)
    assert "textgen v2: not promoted (publish.policy=never); the champion is v1\n" in capsys.readouterr().out


def test_a_model_of_another_text_is_compared_with_the_champion_on_that_text(folder, caplog):
    for split in ("validation", "test"):
        (folder / f"{split}.txt").write_text("an entirely different text of some twenty words\n" * 60)
    published = run_flow(tiny(folder, training={"max_steps": 3}, publish={"policy": "gate"}))["published"]
    assert (published["version"], published["promoted"]) == ("v2", False)
    assert (published["decision"]["opponent"], published["decision"]["documents"]) == ("v1", 60)
    assert published["decision"]["difference"] > 0
    assert "v1, the champion, is scored again" in caplog.text


def test_a_first_model_that_does_not_beat_a_unigram_model_is_not_promoted(tmp_path):
    published = run_flow(tiny(tmp_path, publish={"policy": "gate"}))["published"]
    assert (published["version"], published["promoted"]) == ("v1", False)
    assert published["decision"]["opponent"] == "unigram"
    assert "against unigram" in published["reason"]


def run_main(folder: Path, *arguments: str) -> int:
    config = tiny(folder)
    (folder / "tiny.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    return main(["--config", str(folder / "tiny.yaml"), *arguments])


def test_the_command_prints_a_summary(folder, capsys):
    assert run_main(folder) == 0
    printed = capsys.readouterr().out
    for part in (*STAGES, "token perplexity", "bits a byte", "textgen v1", "python -m textgen generate"):
        assert part in printed


def test_the_command_prints_one_json_document(folder, capsys):
    assert run_main(folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["published"]["version"] == "v1"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.batchsize=3", "training.batch_size"),
        ("training.device=cuda", "no CUDA GPU"),
        ("data.path=nowhere", "one source"),
        ("data.files.train=nowhere*", "no file matches"),
        ("tokenizer={kind: gpt2, path: nowhere}", "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, capsys, override, words):
    assert run_main(folder, override) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err.splitlines()[-1]
    assert "Traceback" not in printed.err


def test_a_server_that_does_not_answer_is_one_line_and_exit_code_1(folder, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
            assert run_main(folder) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("the Prefect server does not answer: ")
    assert last.endswith("PREFECT_API_URL says where it is; without it the command starts one of its own")


def test_text_that_is_not_utf_8_or_empty_is_refused_before_a_run_starts(folder):
    (folder / "train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        check_files(tiny(folder))
    (folder / "train.txt").write_bytes(b"")
    with pytest.raises(InputError, match="empty"):
        check_files(tiny(folder))


def test_a_model_that_transformers_would_run_otherwise_is_not_published(folder, monkeypatch, capsys):
    monkeypatch.setattr("textgen.model.RMSNorm.forward", lambda self, x: x * 1.5)
    assert run_main(folder, "seed=77") == 1
    assert "transformers' logits differ" in capsys.readouterr().err
    assert not (folder / "data" / "models" / "textgen" / "v2").exists()


def start_command(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    (folder / "tiny.yaml").write_text(json.dumps(tiny(folder).model_dump(mode="json")))
    command = [sys.executable, "-m", "flows.train_flow", "--config", str(folder / "tiny.yaml"), "--json", *overrides]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_sequence_longer_than_a_split_is_one_line_and_exit_code_2(folder):
    run = start_command(folder, "data.seq_length=100000")
    out, err = run.communicate()
    assert (run.returncode, out) == (2, "")
    assert "data.seq_length=100000" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_two_commands_at_once_publish_one_version(tmp_path):
    results = []
    for run in [start_command(tmp_path), start_command(tmp_path)]:
        out, err = run.communicate()
        assert run.returncode == 0, err
        results.append(json.loads(out))
    assert [result["published"]["version"] for result in results] == ["v1", "v1"]
    assert results[0]["checkpoint"] == results[1]["checkpoint"]
    assert not list((tmp_path / "data").rglob("*.damaged*"))
