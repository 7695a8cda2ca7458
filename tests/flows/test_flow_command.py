"""The command `python -m flows.train_flow`: what it prints, and what it refuses."""

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
from textgen.errors import InputError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("prefect_server")


def tiny_file(folder: Path) -> str:
    """Write the tiny configuration to a file in `folder` and return its path."""
    (folder / "tiny.yaml").write_text(json.dumps(tiny(folder).model_dump(mode="json")))
    return str(folder / "tiny.yaml")


def run_main(folder: Path, *arguments: str) -> int:
    return main(["--config", tiny_file(folder), *arguments])


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
    monkeypatch.setattr("textgen.model.transformer.RMSNorm.forward", lambda self, x: x * 1.5)
    assert run_main(folder, "seed=77") == 1
    assert "transformers' logits differ" in capsys.readouterr().err
    assert not (folder / "data" / "models" / "textgen" / "v2").exists()


def test_a_sequence_longer_than_a_split_is_one_line_and_exit_code_2(folder):
    command = [sys.executable, "-m", "flows.train_flow", "--config", tiny_file(folder), "--json"]
    server = {"PREFECT_API_URL": PREFECT_API_URL.value(), "PREFECT_HOME": str(folder / "prefect")}
    run = subprocess.run(
        [*command, "data.seq_length=100000"], cwd=ROOT, env={**os.environ, **server}, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert "data.seq_length=100000" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
