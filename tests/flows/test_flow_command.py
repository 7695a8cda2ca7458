"""The command `python -m flows.train_flow`: what it prints, and what it refuses once Prefect runs."""

import json
import signal
import socket
from pathlib import Path

import pytest
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.command_line import read_command
from flows.train_flow import leave_once, main
from tests.flow_runs import STAGES, run_flow, tiny
from textgen.errors import InputError

CANCELLED = FlowRunFilter(state={"type": {"any_": ["CANCELLED"]}})
pytestmark = pytest.mark.usefixtures("prefect_server")


def tiny_file(folder: Path) -> str:
    """Write the tiny configuration to a file in `folder` and return its path."""
    (folder / "tiny.yaml").write_text(json.dumps(tiny(folder).model_dump(mode="json")))
    return str(folder / "tiny.yaml")


def run_main(folder: Path, *arguments: str) -> int:
    return main(read_command(["--config", tiny_file(folder), *arguments]))


def test_the_command_prints_a_summary(folder, capsys):
    assert run_main(folder) == 0
    printed = capsys.readouterr().out
    for part in (*STAGES, "token perplexity", "bits a byte", "textgen v1", " -m textgen generate"):
        assert part in printed


def test_the_command_prints_one_json_document(folder, capsys):
    assert run_main(folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["published"]["version"] == "v1"


def test_a_deployed_run_looks_for_its_device_before_it_reads_the_text(folder):
    config = tiny(folder, training={"device": "cuda"}, storage={"root": str(folder / "new")})
    with pytest.raises(InputError, match="no CUDA GPU"):
        run_flow(config)
    assert not (folder / "new").exists()


def test_a_second_ctrl_c_does_not_disturb_the_leaving():
    previous = signal.signal(signal.SIGINT, leave_once)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, previous)


def test_ctrl_c_in_a_stage_is_a_cancelled_run_and_exit_code_130(folder, monkeypatch, capsys):
    """It was Crashed."""

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("textgen.training.train.train", interrupt)
    with get_client(sync_client=True) as client:
        before = client.count_flow_runs(flow_run_filter=CANCELLED)
        assert run_main(folder, "seed=77") == 130
        assert client.count_flow_runs(flow_run_filter=CANCELLED) == before + 1
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; the same command continues"


def test_a_server_that_does_not_answer_is_one_line_and_exit_code_1(folder, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
            assert run_main(folder) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("the Prefect server does not answer: ")
    assert "PREFECT_API_URL names the server; without it the command uses one that runs on this machine" in last


def test_a_model_that_transformers_would_run_otherwise_is_not_published(folder, monkeypatch, capsys):
    monkeypatch.setattr("textgen.model.transformer.RMSNorm.forward", lambda self, x: x * 1.5)
    assert run_main(folder, "seed=77") == 1
    assert "transformers' logits differ" in capsys.readouterr().err
    assert not (folder / "data" / "models" / "textgen" / "v2").exists()


def test_a_sequence_longer_than_a_split_is_one_line_and_exit_code_2(folder, capsys):
    assert run_main(folder, "--json", "data.seq_length=100000") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "data.seq_length=100000" in printed.err.splitlines()[-1]
    assert "Traceback" not in printed.err
