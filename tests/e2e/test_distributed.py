"""Two processes train as one does: the same losses, however they are started, stopped, killed and continued."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import textgen.training.launch
import textgen.training.train
from tests.trainings import ignore
from tests.waiting import held, until
from textgen.config import Config
from textgen.errors import Diverged, InputError, OutOfMemory, WorkerFailed
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.figures import read_log
from textgen.training.folder import STATES_FOLDER
from textgen.training.train import train

ROOT = Path(__file__).parents[2]
STEPS, LONG = 50, 150
CLOSE = 1e-5  # nats: sums in another order
LEAVING = 5  # leaving takes at most so many times what starting takes
# A learning rate at which rounding does not grow; a gradient of a wrong scale shows, as nothing is clipped and Adam's
# epsilon is not small beside it.
CALM = {
    "learning_rate": 1e-3, "min_learning_rate": 1e-4, "max_grad_norm": 1e9, "adam_epsilon": 1e-2, "log_every": 1,
    "eval_every": 10,
}  # fmt: skip
# Python imports a file of this name when it starts: one process records what it changes, or runs out of memory.
RECORD_CHANGES = """
import os, sys
CHANGES = {{"os.mkdir", "os.rename", "os.remove", "os.rmdir", "tempfile.mkdtemp", "tempfile.mkstemp"}}
if rank := os.environ.get("RANK"):
    record = open({folder!r} + "/changes." + rank, "a", buffering=1)
    def hook(event, details):
        writes = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and {out!r} in str(details):
            record.write(event + "\\n")
    sys.addaudithook(hook)
"""
RUN_OUT_OF_MEMORY = """
import os
if os.environ.get("RANK") == "1":
    import torch
    def backward(loss):
        raise torch.OutOfMemoryError
    torch.Tensor.backward = backward
"""

Call = tuple[int, dict[str, float]]


def processes_of(out: Path) -> dict[int, str | None]:
    """Return the processes that were started to train in `out`, each with its rank where torchrun gave it one."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(out).encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                environment = dict(
                    line.partition("=")[::2] for line in (folder / "environ").read_text(errors="replace").split("\0")
                )
                found[int(folder.name)] = environment.get("RANK")
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    return found


def losses(lines: Sequence[Call]) -> list[tuple[int, str, float]]:
    """Return step, name and value of every logged loss."""
    return [(step, name, figures[name]) for step, figures in lines for name in figures if name.endswith("loss_nats")]


def logged(out: Path) -> list[Call]:
    return [(int(line["step"]), line) for line in read_log(out)]


def assert_same(lines: Sequence[Call], expected: Sequence[Call]) -> None:
    """Check that the same lines are there, once each and in order, with the same losses."""
    found, wanted = losses(lines), losses(expected)
    assert [place for *place, _ in found] == [place for *place, _ in wanted]
    assert [loss for *_, loss in found] == pytest.approx([loss for *_, loss in wanted], abs=CLOSE, rel=0)


def newest_step(out: Path) -> int:
    """Return the step of the newest state in `out`."""
    return max(int(path.name.removeprefix("step-")) for path in (out / STATES_FOLDER).glob("step-????????"))


def with_devices(config: Config, devices: int) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update={"devices": devices})})


@pytest.fixture
def command(tokens, tmp_path) -> Callable[[Config, Path], list[str]]:
    """Return a function from a configuration and a folder to what follows `-m` to train it there."""

    def arguments(config: Config, out: Path) -> list[str]:
        (tmp_path / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))  # JSON is YAML
        files = ("--config", tmp_path / "config.yaml", "--tokens", tokens.folder, "--out", out)
        return ["textgen", "train", *map(str, files)]

    return arguments


@pytest.fixture(scope="module")
def long(make_config) -> Config:
    """Return a training of one process that can be stopped in its middle."""
    return make_config(training={**CALM, "max_steps": LONG, "checkpoint_every": 10, "eval_every": LONG, "devices": 1})


@pytest.fixture(scope="module")
def undisturbed(tokens, long, tmp_path_factory) -> CheckpointManifest:
    return train(tokens, long, tmp_path_factory.mktemp("undisturbed") / "out", ignore)


@pytest.mark.parametrize("micro_steps", [1, 2])
def test_two_processes_share_an_odd_batch_with_the_losses_of_one(
    micro_steps, tokens, make_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(textgen.training.launch, "LOG_POLL_SECONDS", 600)  # all lines come with the end, none is lost
    sizes = {"batch_size": 7, "gradient_accumulation_steps": micro_steps, "max_steps": STEPS}
    config, calls = make_config(training={**CALM, **sizes}), []
    one = train(tokens, config, tmp_path / "one", ignore)
    two = train(tokens, with_devices(config, 2), tmp_path / "two", lambda *call: calls.append(call))
    assert (one.devices, two.devices) == (1, 2)
    assert_same(logged(tmp_path / "two"), logged(tmp_path / "one"))
    assert_same(calls, logged(tmp_path / "one"))
    assert [point.loss_nats for point in two.curve] == pytest.approx(
        [point.loss_nats for point in one.curve], abs=CLOSE
    )


def test_torchrun_trains_with_the_losses_of_one_process_and_only_the_first_writes(
    tokens, long, undisturbed, command, tmp_path
):
    out, torchrun = tmp_path / "out", Path(sys.executable).with_name("torchrun")
    (tmp_path / "sitecustomize.py").write_text(RECORD_CHANGES.format(folder=str(tmp_path), out=str(out)))
    done = subprocess.run(
        [torchrun, "--nproc-per-node", "2", "-m", *command(long, out)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1, "not only one process printed the result"
    assert CheckpointManifest.read(out).devices == 2
    assert_same(logged(out), logged(undisturbed.folder))
    assert (tmp_path / "changes.0").read_text()
    assert not (tmp_path / "changes.1").read_text()


def test_a_killed_process_ends_the_other_and_one_process_continues(tokens, long, undisturbed, tmp_path, caplog):
    out, calls = tmp_path / "out", []

    def kill() -> float:
        until(lambda: len(read_log(out)) >= LONG // 3, "a third of the training is done")
        victim = next(process for process, rank in processes_of(out).items() if rank == "1")
        os.kill(victim, signal.SIGKILL)
        return time.monotonic()

    begun = time.monotonic()
    with ThreadPoolExecutor(1) as watcher, held(tmp_path):
        killing = watcher.submit(kill)
        with pytest.raises(WorkerFailed, match=r"^training process 1 .* was killed by SIGKILL"):
            train(tokens, with_devices(long, 2), out, lambda *call: calls.append(call))
        assert time.monotonic() - killing.result() < LEAVING * (killing.result() - begun)
    assert not processes_of(out)
    saved, reached = newest_step(out), len(losses(calls))
    assert 10 < saved < LONG
    caplog.set_level(logging.INFO)
    train(tokens, long, out, lambda *call: calls.append(call))
    assert f"continuing from step {saved}" in caplog.messages
    assert_same(logged(out), logged(undisturbed.folder))
    assert_same(calls, logged(undisturbed.folder))
    assert 0 < reached < len(losses(calls))


@pytest.mark.slow  # two processes start twice
def test_two_processes_continue_one_and_end_when_their_figures_cannot_be_handed_on(
    tokens, long, undisturbed, tmp_path, monkeypatch, capfd
):
    out, calls = tmp_path / "out", []

    def end_at(last: int) -> Callable[[int, dict[str, float]], None]:
        def on_metrics(step: int, figures: dict[str, float]) -> None:
            calls.append((step, figures))
            if step == last:
                raise InterruptedError(f"no room for step {step}")

        return on_metrics

    with pytest.raises(InterruptedError, match="step 24"):
        train(tokens, long, out, end_at(24))
    saved = newest_step(out)
    assert saved > 0
    with held(tmp_path), pytest.raises(InterruptedError, match="step 26"):
        train(tokens, with_devices(long, 2), out, end_at(26))
    assert not processes_of(out)
    assert f"continuing from step {saved}\n" in capfd.readouterr().err
    assert 26 <= newest_step(out) < LONG, "two processes did not stop, or left no state"
    two = train(tokens, with_devices(long, 2), out, ignore)
    assert two.devices == 2
    assert_same(logged(out), logged(undisturbed.folder))
    assert_same(calls, logged(undisturbed.folder)[: len(calls)])
    assert calls[-1][0] == 26
    monkeypatch.setattr(textgen.training.train, "launch", None)
    assert train(tokens, with_devices(long, 2), out, end_at(0)) == two, "a finished training started processes"


@pytest.mark.parametrize(
    ("training", "startup", "kind", "message"),
    [
        ({"learning_rate": 1e30, "min_learning_rate": 1e30}, "", Diverged, r"^10 steps in a row, up to step \d+"),
        ({"max_steps": None, "epochs": 0.01}, "", InputError, r"^training\.warmup_steps=4 is not below the 1 steps"),
        ({}, RUN_OUT_OF_MEMORY, OutOfMemory, r"^out of memory in a training step on cpu: set training\.batch_size=4"),
    ],
    ids=["in both", "before the first step", "in the second only"],
)
def test_what_a_process_raises_reaches_the_caller(
    training, startup, kind, message, tokens, make_config, tmp_path, monkeypatch, capfd
):
    (tmp_path / "sitecustomize.py").write_text(startup)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    config = make_config(training={**training, "devices": 2})
    with pytest.raises(kind, match=message):
        train(tokens, config, tmp_path / "out", ignore)
    assert not processes_of(tmp_path / "out")
    assert "Traceback" not in capfd.readouterr().err
    assert os.environ["PYTHONPATH"] == str(tmp_path)


def test_more_processes_than_sequences_in_a_batch_are_refused_before_any_starts(make_config, command, tmp_path):
    config = make_config(training={"batch_size": 2, "devices": 3})
    done = subprocess.run(
        [sys.executable, "-m", *command(config, tmp_path / "out")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "training.batch_size=2 cannot be shared by 3 processes (training.devices)\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # two processes start three times
def test_signals_have_both_processes_leave_with_a_state_that_the_same_command_continues(
    long, undisturbed, command, tmp_path
):
    out = tmp_path / "out"
    arguments = [sys.executable, "-m", *command(with_devices(long, 2), out)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # what a killed parent leaves there
    lines_before, whole = 0, len(logged(undisturbed.folder))
    for number, exit_code in [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, None)]:
        lines = lines_before + whole // 5
        begun = time.monotonic()
        with held(tmp_path), (tmp_path / "stderr.txt").open("w+") as stderr:
            parent = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=stderr)
            with parent:
                until(lambda lines=lines: len(read_log(out)) >= lines, "it trains")
                sent = time.monotonic()
                parent.send_signal(number)
                until(lambda: not processes_of(out), "both processes leave")
            assert time.monotonic() - sent < LEAVING * (sent - begun)
            stderr.seek(0)
            said = stderr.read()
        assert parent.returncode == (exit_code if exit_code is not None else -number)
        assert "Traceback" not in said
        assert said.count("is saved") == 1
        lines_before = len(read_log(out))
        steps_logged = logged(out)[-1][0]
        assert newest_step(out) == steps_logged < LONG, "the step it was in was not saved"
    done = subprocess.run([*arguments, "training.devices=1"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"continuing from step {steps_logged}" in done.stderr
    assert_same(logged(out), logged(undisturbed.folder))
