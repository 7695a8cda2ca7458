"""Signals: a training ends after the step they come in, its state saved, and the same command continues it."""

import hashlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from torch import Tensor

import textgen.evaluation.scoring
import textgen.training.step
import textgen.training.train
from tests.trainings import ignore
from tests.waiting import PATIENCE_SECONDS, held
from textgen.config import Config
from textgen.files import Manifest
from textgen.model.pretrained import WEIGHTS_FILE
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.figures import LOG_FILE, OnMetrics
from textgen.training.folder import STATES_FOLDER
from textgen.training.interrupt import DEFERRED, DeferredSignals
from textgen.training.plan import train_key
from textgen.training.state import OPTIMIZER_FILE, newest_state
from textgen.training.step import Stepper
from textgen.training.train import train

ROOT = Path(__file__).parents[2]
STEPS = 12
COMMAND_STEPS = 40
TIMED = re.compile(r"per_second|mfu|memory|seconds/")  # figures that no two runs share

Line = tuple[int, dict[str, float]]


class Termination(BaseException):
    """What a process manager's handler of SIGTERM raises."""


def collect(lines: list[Line]) -> OnMetrics:
    def on_metrics(step: int, figures: dict[str, float]) -> None:
        lines.append((step, untimed(figures)))

    return on_metrics


def untimed(figures: dict[str, float]) -> dict[str, float]:
    return {name: figure for name, figure in figures.items() if not TIMED.search(name)}


def logged(out: Path) -> list[Line]:
    lines = [json.loads(line) for line in (out / LOG_FILE).read_text().splitlines()]
    return [(line.pop("step"), untimed(line)) for line in lines]


def sha256_of_the_end(out: Path, steps: int = STEPS) -> list[str]:
    """Return the sha256 of the best weights, the last ones and the optimizer of a finished training."""
    last = out / STATES_FOLDER / f"step-{steps:08d}"
    files = [out / WEIGHTS_FILE, last / WEIGHTS_FILE, last / OPTIMIZER_FILE]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def saved_step(out: Path, tokens, config: Config) -> int:
    """Return the step of the newest state, which verifies."""
    saved = newest_state(out, train_key(tokens, config))
    assert saved is not None, "no state was saved"
    return int(saved.folder.name.removeprefix("step-"))


@pytest.fixture(scope="module")
def config(make_config) -> Config:
    """Return a training whose states fall on the first and the last steps only, if nothing interrupts it."""
    return make_config(
        model={"dropout": 0.2},
        training={
            "max_steps": STEPS, "batch_size": 4, "gradient_accumulation_steps": 2, "checkpoint_every": 100,
            "eval_every": 6, "log_every": 1,
        },
        evaluation={"batch_size": 4},
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tokens, config, tmp_path_factory) -> CheckpointManifest:
    return train(tokens, config, tmp_path_factory.mktemp("uninterrupted") / "out", ignore)


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def number(request) -> Iterator[signal.Signals]:
    """Yield a signal whose handler, in this test, raises what the process's manager would raise: `Termination`."""

    def handler(received: int, frame: object) -> None:
        assert received == request.param
        raise Termination

    before = signal.signal(request.param, handler)
    yield request.param
    assert signal.getsignal(request.param) is handler, "the handler that was there is not there again"
    signal.signal(request.param, before)


def on_call(times: int, function: Callable, before: Callable[[], None]) -> Callable:
    """Return `function`, but call `before` before the call of this number, counted from 1."""
    calls = 0

    def counted(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == times:
            before()
        return function(*arguments, **named)

    return counted


# Which function the signal comes in, in which of its calls, and the last step that is finished then
MOMENTS = {
    "the first step": ("take_step", 1, 1),
    "a later step": ("take_step", 5, 5),
    "the last step": ("take_step", STEPS, STEPS),
    "the first micro-step of a step": ("batch", 2 * 4 + 1, 4),
    "the second micro-step of a step": ("batch", 2 * 4 + 2, 4),
    "the save before a validation": ("save_state", 1, 6),
    "a batch of a validation": ("score_batch", 0, 6),
    "the last validation": ("score_batch", -1, STEPS),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_the_training_after_its_step_and_it_continues_to_the_same_bytes(
    moment, number, tokens, config, uninterrupted, tmp_path, monkeypatch
):
    name, call, finished = MOMENTS[moment]
    owner = {
        "batch": Stepper,
        "take_step": textgen.training.step,
        "score_batch": textgen.evaluation.scoring,
    }.get(name, textgen.training.train)
    if name == "score_batch":  # called as often in each of the three validations
        batches = -(-min(config.training.eval_blocks, (tokens.splits["validation"].tokens - 1) // 16) // 4)
        assert batches > 2
        call = batches + 2 if call == 0 else 3 * batches
    metrics: list[Line] = []
    with monkeypatch.context() as patch, pytest.raises(Termination):
        patch.setattr(owner, name, on_call(call, getattr(owner, name), lambda: signal.raise_signal(number)))
        train(tokens, config, tmp_path / "out", collect(metrics))
    assert not (tmp_path / "out" / Manifest.FILE).exists()
    assert saved_step(tmp_path / "out", tokens, config) == finished
    continued: list[int] = []
    take_step = textgen.training.step.take_step
    monkeypatch.setattr(
        textgen.training.step, "take_step", lambda *arguments: (continued.append(1), take_step(*arguments))
    )
    manifest = train(tokens, config, tmp_path / "out", collect(metrics))
    assert len(continued) == STEPS - finished, "a finished step was repeated"
    assert sha256_of_the_end(tmp_path / "out") == sha256_of_the_end(uninterrupted.folder)
    assert manifest.curve == uninterrupted.curve
    assert logged(tmp_path / "out") == logged(uninterrupted.folder) == metrics


def test_a_signal_does_not_wait_for_the_end_of_a_validation(number, tokens, config, tmp_path, monkeypatch):
    calls: list[int] = []
    score_batch = textgen.evaluation.scoring.score_batch

    def signalled(*arguments) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(number)
        return score_batch(*arguments)

    monkeypatch.setattr(textgen.evaluation.scoring, "score_batch", signalled)
    with pytest.raises(Termination):
        train(tokens, config, tmp_path / "out", ignore)
    assert len(calls) == 2


def test_a_training_that_is_interrupted_again_and_again_ends_at_the_same_bytes(tokens, config, uninterrupted, tmp_path):
    metrics: list[Line] = []

    def interrupt(step: int, figures: dict[str, float]) -> None:
        collect(metrics)(step, figures)
        signal.raise_signal(signal.SIGINT)

    interruptions = 0
    while not (tmp_path / "out" / Manifest.FILE).exists():
        try:
            train(tokens, config, tmp_path / "out", interrupt)
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions > STEPS
    assert sha256_of_the_end(tmp_path / "out") == sha256_of_the_end(uninterrupted.folder)
    assert logged(tmp_path / "out") == logged(uninterrupted.folder) == metrics


def test_a_second_signal_does_not_wait(number, tokens, config, tmp_path):
    reached = []

    def on_metrics(step: int, figures: dict[str, float]) -> None:
        if step == 3:
            signal.raise_signal(number)
            reached.append("the first waits")
            signal.raise_signal(number)
            reached.append("the second waits")

    with pytest.raises(Termination):
        train(tokens, config, tmp_path / "out", on_metrics)
    assert reached == ["the first waits"]
    assert newest_state(tmp_path / "out", train_key(tokens, config)) is None


def test_a_handler_that_returns_ends_the_training_as_ctrl_c_does(tokens, config, tmp_path):
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with pytest.raises(KeyboardInterrupt):
            train(
                tokens, config, tmp_path / "out",
                lambda step, figures: signal.raise_signal(signal.SIGTERM) if step == 2 else None,
            )  # fmt: skip
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
    assert saved_step(tmp_path / "out", tokens, config) == 2


def test_the_handlers_are_as_before_after_a_training(tokens, config, tmp_path):
    before = [signal.getsignal(number) for number in DEFERRED]
    during = []

    def on_metrics(step: int, figures: dict[str, float]) -> None:
        during.append([signal.getsignal(number) for number in DEFERRED])

    train(tokens, config, tmp_path / "out", on_metrics)
    assert [signal.getsignal(number) for number in DEFERRED] == before
    assert all(handler not in before for handlers in during for handler in handlers)
    with pytest.raises(ZeroDivisionError):
        train(tokens, config, tmp_path / "failed", lambda step, figures: 1 / 0)
    assert [signal.getsignal(number) for number in DEFERRED] == before


def test_outside_the_main_thread_nothing_is_deferred_and_training_works(tokens, config, uninterrupted, tmp_path):
    before, during = [signal.getsignal(number) for number in DEFERRED], []

    def on_metrics(step: int, figures: dict[str, float]) -> None:
        during.append([signal.getsignal(number) for number in DEFERRED])

    thread = threading.Thread(target=train, args=(tokens, config, tmp_path / "out", on_metrics))
    thread.start()
    thread.join()
    assert during and all(handlers == before for handlers in during)
    assert sha256_of_the_end(tmp_path / "out") == sha256_of_the_end(uninterrupted.folder)


def test_a_signal_that_nobody_delivered_comes_at_the_end_of_the_context(number):
    reached = []
    with pytest.raises(Termination), DeferredSignals() as signals:
        signal.raise_signal(number)
        reached.append(signals.pending)
    assert reached == [number]


def test_a_signal_comes_before_an_exception_of_the_context_which_is_told(number, caplog):
    """Otherwise a training that failed would be tried again by a process that was told to end."""
    with pytest.raises(Termination) as ended, DeferredSignals():
        signal.raise_signal(number)
        raise ZeroDivisionError("of this")
    assert isinstance(ended.value.__context__, ZeroDivisionError)
    assert "ZeroDivisionError: of this" in caplog.text, "the signal may end the process at once"


def test_without_a_signal_nothing_is_raised():
    with DeferredSignals() as signals:
        pass
    assert signals.pending is None


def start_and_send(number: signal.Signals, tokens, config: Config, out: Path) -> tuple[int, str]:
    """Start `python -m textgen train`, send it a signal once its progress bar has moved; return its end and output."""
    (out.parent / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    arguments = ["--config", out.parent / "config.yaml", "--tokens", tokens.folder, "--out", out]
    terminal, theirs = pty.openpty()  # on a terminal it shows its bar
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen([sys.executable, "-m", "textgen", "train", *arguments], cwd=ROOT, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while select.select([terminal], [], [], PATIENCE_SECONDS)[0] and (piece := os.read(terminal, 4096)):
            if not re.search(moved := rb" [1-9]\d*/%d" % COMMAND_STEPS, shown) and re.search(moved, shown + piece):
                process.send_signal(number)
            shown += piece
    except OSError:  # how Linux says that the other end of a terminal is closed
        pass
    os.close(terminal)
    return process.wait(PATIENCE_SECONDS), shown.decode()


def test_the_command_leaves_as_the_signal_asks_and_continues_to_the_same_bytes(tokens, make_config, tmp_path):
    config = make_config(
        model={"hidden_size": 16, "intermediate_size": 16},
        training={
            "max_steps": COMMAND_STEPS, "eval_every": COMMAND_STEPS, "checkpoint_every": COMMAND_STEPS,
            "log_every": 10, "batch_size": 1,
        },
    )  # fmt: skip
    outs = [tmp_path / number.name / "out" for number in DEFERRED]
    with ExitStack() as stack, ThreadPoolExecutor() as both:  # most of their time goes into imports
        for out in outs:
            stack.enter_context(held(out.parent))  # or a fast machine ends the training before it has the signal
        ends = list(both.map(start_and_send, DEFERRED, [tokens] * 2, [config] * 2, outs))
    uninterrupted: list[Line] = []
    train(tokens, config, tmp_path / "uninterrupted", collect(uninterrupted))
    for number, out, (returncode, shown) in zip(DEFERRED, outs, ends, strict=True):
        assert returncode == {signal.SIGINT: 130, signal.SIGTERM: -signal.SIGTERM}[number], shown
        assert "its state is saved" in shown and "Traceback" not in shown
        assert ("the same command continues" in shown) == (number == signal.SIGINT)
        assert 0 < saved_step(out, tokens, config) < COMMAND_STEPS
        before, after = logged(out), []
        train(tokens, config, out, collect(after))
        assert before + after == logged(out) == uninterrupted
        assert sha256_of_the_end(out, COMMAND_STEPS) == sha256_of_the_end(tmp_path / "uninterrupted", COMMAND_STEPS)
