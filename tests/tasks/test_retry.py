"""A training that fails in the flow: tried again from its last state, but where that would end the same way."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect import Task, flow

import tasks.train
import textgen.training.train
from tasks.stage import run_stage
from textgen.config import Config
from textgen.errors import Diverged, InputError, OutOfMemory, StateNotSaved
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.figures import LOG_FILE
from textgen.training.folder import STATES_FOLDER

pytestmark = pytest.mark.usefixtures("prefect_server")
STEPS = 12
Line = tuple[int, dict[str, float]]


class Recorder:
    """What stands in for Weights & Biases: it keeps what each attempt hands on."""

    url = None

    def __init__(self) -> None:
        self.attempts: list[list[Line]] = []

    @contextmanager
    def track(self, config: Config, folder: Path, **facts: int) -> Iterator["Recorder"]:
        self.attempts.append([])
        yield self

    def log(self, step: int, figures: dict[str, float]) -> None:
        self.attempts[-1].append((step, figures))

    def summarize(self, figures: dict[str, float | None]) -> None:
        pass

    @property
    def lines(self) -> list[Line]:
        return [line for lines in self.attempts for line in lines]


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(tasks.train, "track", recorder.track)
    return recorder


@pytest.fixture
def config(make_config, tmp_path) -> Config:
    return make_config(
        model={"dropout": 0.2},
        training={"max_steps": STEPS, "log_every": 1, "eval_every": 6, "checkpoint_every": 4},
        storage={"root": str(tmp_path / "data")},
    )


@pytest.fixture
def fail(monkeypatch) -> Callable[..., list[int]]:
    """Return a function that has the steps of these calls, counted from 0, raise the errors given for them.

    It returns a list that receives the number of every step that is begun.
    """

    def fail(errors: dict[int, BaseException]) -> list[int]:
        begun: list[int] = []
        step = textgen.training.train.Run.step

        def failing(run: textgen.training.train.Run) -> None:
            begun.append(run.progress.step)
            if error := errors.get(len(begun) - 1):
                raise error
            step(run)

        monkeypatch.setattr(textgen.training.train.Run, "step", failing)
        return begun

    return fail


def without_delay(task: Task[..., Any]) -> Task[..., Any]:
    assert task.retries == len(tasks.train.RETRY_SECONDS) == 2
    assert task.retry_delay_seconds == tasks.train.RETRY_SECONDS
    return task.with_options(retry_delay_seconds=0)


@flow
def train_alone(config: Config, tokens: Any) -> CheckpointManifest:
    return run_stage(without_delay(tasks.train.train), config, tokens=tokens)[0]


def run_flow(config: Config, tokens) -> CheckpointManifest:
    return train_alone(config, tokens)


def names(lines: list[Line]) -> list[tuple[int, str]]:
    """Return the steps of lines and what kind each is."""
    return [(step, "validation" if "validation/loss_nats" in figures else "train") for step, figures in lines]


def weights_sha256(config: Config, tokens, out: Path) -> str:
    return textgen.training.train.train(tokens, config, out, lambda step, figures: None).weights_sha256


EXPECTED_LINES = [
    (0, "validation"), *((step, "train") for step in range(1, 7)), (6, "validation"),
    *((step, "train") for step in range(7, 13)), (12, "validation"),
]  # fmt: skip


def test_a_training_that_fails_once_is_continued_by_the_task(config, tokens, recorder, fail, tmp_path, caplog):
    begun = fail({7: RuntimeError("the cable was pulled")})
    manifest = run_flow(config, tokens)
    assert begun == [*range(8), *range(6, STEPS)], "it did not continue from the state of step 6"
    assert len(recorder.attempts) == 2
    assert names(recorder.lines) == EXPECTED_LINES
    assert "the training failed: the cable was pulled; continuing from its last state" in caplog.text
    logged = [json.loads(line) for line in (manifest.folder / LOG_FILE).read_text().splitlines()]
    assert names([(line.pop("step"), line) for line in logged]) == EXPECTED_LINES
    assert manifest.weights_sha256 == weights_sha256(config, tokens, tmp_path / "undisturbed")


def test_what_was_handed_on_before_a_failure_is_not_handed_on_again(config, tokens, recorder, fail):
    begun = fail({4: RuntimeError("once"), 5 + 5: RuntimeError("twice")})
    training = config.training.model_copy(update={"checkpoint_every": 100})
    run_flow(config.model_copy(update={"training": training}), tokens)
    assert begun == [*range(5), *range(6), *range(STEPS)], "a state was saved before the first failures"
    assert [len(lines) for lines in recorder.attempts] == [5, 1, len(EXPECTED_LINES) - 6]
    assert names(recorder.lines) == EXPECTED_LINES


def test_a_training_that_fails_each_time_fails_after_three_attempts(config, tokens, recorder, fail):
    begun = fail({number: RuntimeError(f"failure {number}") for number in range(100)})
    with pytest.raises(RuntimeError, match="failure 2"):
        run_flow(config, tokens)
    assert begun == [0, 0, 0]
    assert names(recorder.lines) == [(0, "validation")]


@pytest.mark.parametrize("error", [InputError("no"), Diverged("no"), OutOfMemory("no"), StateNotSaved("no")])
def test_a_failure_that_would_come_again_is_not_retried(error, config, tokens, recorder, fail):
    begun = fail({5: error})
    with pytest.raises(type(error), match=r"^no$"):
        run_flow(config, tokens)
    assert begun == list(range(6))
    assert len(recorder.attempts) == 1


def test_a_command_given_again_continues_what_was_not_retried(config, tokens, recorder, fail, tmp_path):
    begun = fail({5: OutOfMemory("no")})
    with pytest.raises(OutOfMemory):
        run_flow(config, tokens)
    manifest = run_flow(config, tokens)
    assert begun == [*range(6), *range(4, STEPS)]
    assert names(recorder.lines) == EXPECTED_LINES
    assert (manifest.folder / STATES_FOLDER / f"step-{STEPS:08d}").is_dir()
