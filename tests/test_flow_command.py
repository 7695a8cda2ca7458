"""The command `python -m flows.train_flow`: what it prints, what it refuses, and two of them at once."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.train_flow import check_files, main
from tests.flow_runs import STAGES, tiny
from tests.waiting import held, until
from textgen.files import InputError

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("prefect_server")


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


def start_command(folder: Path, name: str, *overrides: str) -> subprocess.Popen[bytes]:
    """Start the command on the tests' server; what it prints goes to the files NAME.out and NAME.err of `folder`."""
    (folder / "tiny.yaml").write_text(json.dumps(tiny(folder).model_dump(mode="json")))
    command = [sys.executable, "-m", "flows.train_flow", "--config", str(folder / "tiny.yaml"), "--json", *overrides]
    server = {"PREFECT_API_URL": PREFECT_API_URL.value(), "PREFECT_HOME": str(folder / "prefect")}
    with (folder / f"{name}.out").open("wb") as out, (folder / f"{name}.err").open("wb") as err:
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **server}, stdout=out, stderr=err)


def test_a_sequence_longer_than_a_split_is_one_line_and_exit_code_2(folder):
    returncode = start_command(folder, "run", "data.seq_length=100000").wait()
    out, err = [(folder / file).read_text() for file in ("run.out", "run.err")]
    assert (returncode, out) == (2, "")
    assert "data.seq_length=100000" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_two_commands_at_once_publish_one_version(tmp_path):
    def waiting() -> list[str]:
        return [name for name in names if "another process trains in" in (tmp_path / f"{name}.err").read_text()]

    names = ("first", "second")
    with held(tmp_path / "data" / "checkpoints"):  # neither ends before the other waits for it
        runs = [start_command(tmp_path, name) for name in names]
        until(lambda: waiting() or any(run.poll() is not None for run in runs), "one waits while the other trains")
    returncodes = [run.wait() for run in runs]
    assert returncodes == [0, 0], [(tmp_path / f"{name}.err").read_text() for name in names]
    assert len(waiting()) == 1
    results = [json.loads((tmp_path / f"{name}.out").read_text()) for name in names]
    assert [result["published"]["version"] for result in results] == ["v1", "v1"]
    assert results[0]["checkpoint"] == results[1]["checkpoint"]
    assert not list((tmp_path / "data").rglob("*.damaged*"))
