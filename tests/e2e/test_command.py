"""`python -m flows.train_flow` as a user runs it: WikiText-2, signals, and no network."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.runs import TINY, run_command, succeed
from tests.waiting import held, until

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
LEAVING = 5  # leaving takes at most so many times what starting takes: it waits some seconds for Prefect's server
FEW_STEPS = 20
WAITING_SECONDS = 60  # for a Hub that does not answer, beside what the command itself takes


@pytest.mark.slow  # starts a server
@pytest.mark.parametrize(("number", "whole_group", "code"), [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143)])
def test_a_signal_saves_the_state_and_ends_the_run_and_its_server(
    number, whole_group, code, home, corpus, tmp_path, record_property
):
    """Ctrl-C reaches the temporary server too: the run once waited for it for minutes."""
    every = ("training.log_every=1", "training.checkpoint_every=1000")
    command = [sys.executable, "-m", "flows.train_flow", corpus, f"storage.root={tmp_path / 'data'}", *TINY, *every]
    with held(checkpoints := tmp_path / "data" / "checkpoints"), (tmp_path / "err.txt").open("w+") as err:
        begun = time.monotonic()
        started = subprocess.Popen(command, cwd=ROOT, env=home, stdout=err, stderr=err, start_new_session=True)

        def trains() -> bool:
            assert started.poll() is None, (tmp_path / "err.txt").read_text()
            return any(log.read_text() for log in checkpoints.glob("*/log.jsonl"))

        until(trains, "the training logs a step")
        (os.killpg if whole_group else os.kill)(started.pid, number)
        signalled = time.monotonic()
        assert started.wait() == code
        until(lambda: not is_there(started.pid), "the last process of the session is gone")
    record_property("start_seconds", start := signalled - begun)
    record_property("leave_seconds", leave := time.monotonic() - signalled)
    assert leave < LEAVING * start
    assert "its state is saved" in (tmp_path / "err.txt").read_text()
    assert len(list(checkpoints.glob("*/states/step-*"))) == 1


def is_there(session: int) -> bool:
    """Return whether a process of a session is left."""
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow  # starts two servers
def test_two_commands_at_once_publish_one_version(home, corpus, tmp_path):
    root, names = tmp_path / "data", ("first", "second")

    def start(name: str) -> subprocess.Popen[bytes]:
        options = (corpus, f"storage.root={root}", *TINY, f"training.max_steps={FEW_STEPS}")
        command = [sys.executable, "-m", "flows.train_flow", "--json", *options]
        environment = {**home, "PREFECT_HOME": str(tmp_path / name)}  # a server and a database of its own
        with (tmp_path / f"{name}.out").open("wb") as out, (tmp_path / f"{name}.err").open("wb") as err:
            return subprocess.Popen(
                [*command, f"training.max_steps={FEW_STEPS}"], cwd=ROOT, env=environment, stdout=out, stderr=err
            )

    def waiting() -> list[str]:
        return [name for name in names if "another process trains in" in (tmp_path / f"{name}.err").read_text()]

    with held(root / "checkpoints"):  # neither ends before the other waits for it
        runs = [start(name) for name in names]
        until(lambda: waiting() or any(run.poll() is not None for run in runs), "one waits while the other trains")
    assert [run.wait() for run in runs] == [0, 0], [(tmp_path / f"{name}.err").read_text() for name in names]
    assert len(waiting()) == 1
    results = [json.loads((tmp_path / f"{name}.out").read_text()) for name in names]
    assert [result["published"]["version"] for result in results] == ["v1", "v1"]
    assert results[0]["checkpoint"] == results[1]["checkpoint"]
    assert not list(root.rglob("*.damaged*"))


@pytest.mark.slow  # a real corpus: it counts and scores 460,000 tokens of 50,257 kinds
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_wikitext_2_runs_through_to_a_published_model(home, tmp_path):
    result = succeed(
        home,
        "--config", "configs/wikitext2.yaml", f"data.path={SHARED / 'wikitext'}", "data.dataset_config=wikitext-2-v1",
        f"tokenizer.path={SHARED / 'gpt2-tokenizer'}", f"storage.root={tmp_path / 'data'}", "data.seq_length=64",
        "model={hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}",
        "training={max_steps: 200, warmup_steps: 20, batch_size: 8, eval_every: 100, eval_blocks: 64}",
        "evaluation={protocol: blocks, batch_size: 16}",
    )  # fmt: skip
    counts = {name: (split["rows"], split["words"]) for name, split in result["raw"]["splits"].items()}
    assert counts == {"train": (36_718, 2_051_910), "validation": (3_760, 213_886), "test": (4_358, 241_211)}
    assert result["metrics"]["test"]["words"] + result["metrics"]["test"]["rows"] == 245_569
    assert result["published"]["name"] == "wikitext2"
    prompt = [
        sys.executable,
        "-m",
        "textgen",
        "generate",
        result["published"]["path"],
        "--prompt",
        " = Robert",
        "--seed",
        "1",
    ]
    written = subprocess.run(
        [*prompt, "--max-tokens", "5"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert written.startswith(" = Robert")


@pytest.mark.slow  # it asks three times more, 15 seconds in all
def test_without_a_hub_one_message_says_what_was_tried_and_the_two_ways_on(home, tmp_path):
    def refused(**environment: str) -> float:
        started = time.monotonic()
        done = run_command(
            {**home, **environment}, "--config", "configs/wikitext2.yaml", f"storage.root={tmp_path / 'data'}"
        )
        seconds = time.monotonic() - started
        assert (done.returncode, done.stdout) == (1, "")
        last = done.stderr.splitlines()[-1]
        for part in ("Salesforce/wikitext", "Hugging Face Hub", "data.path=", "data.dataset_name=python-docs"):
            assert part in last
        assert "Traceback" not in done.stderr
        assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file() and "cache" not in path.parts]
        return seconds

    with socket.socket() as unused:  # bound and not listening: refused at once
        unused.bind(("127.0.0.1", 0))
        waiting = refused(HF_ENDPOINT=f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert waiting < WAITING_SECONDS + 3 * refused(HF_HUB_OFFLINE="1")
