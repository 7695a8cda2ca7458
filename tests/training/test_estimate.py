"""What the rest of a training will take, said once its pace is known; a disk without room is noticed before it."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.trainings import Interruption, ignore, interrupt_at
from textgen.errors import StateNotSaved
from textgen.sections import Pace
from textgen.training import estimate
from textgen.training.estimate import Timer, bytes_there, check_room, disk_bytes, rest_in_words
from textgen.training.plan import plan_training
from textgen.training.progress import Progress, Validation
from textgen.training.start import new_state
from textgen.training.train import train

WSD = {"schedule": "wsd", "decay_fraction": 0.2}


def times(seconds: list[float], waited: Callable[[int], bool] = lambda step: True) -> list[float | None]:
    """Return what a timer says after each step of a training that goes on at step 100, after a minute of it."""
    progress = Progress(step=100, seconds={"train": 60.0})
    timer, said = Timer(progress), []
    for step, more in enumerate(seconds, 1):
        progress.step, progress.seconds["train"] = 100 + step, progress.seconds["train"] + more
        said.append(timer.look(progress, waited(step)))
    return said


def test_the_pace_is_that_of_ten_steps_without_the_first_and_is_said_once():
    said = times([9.0, *[2.0] * 20])
    assert said == [*[None] * 9, 2.0, *[None] * 11]


def test_steps_that_a_gpu_has_not_taken_yet_are_not_timed():
    """The first is looked at all the same: it compiles."""
    said = times([9.0, *[0.0] * 11, 24.0], waited=lambda step: step == 13)
    assert said == [*[None] * 12, 2.0]


def test_nobody_waits_for_ten_slow_steps():
    assert times([40.0, 20.0, 20.0]) == [None, 20.0, None]


def test_the_rest_counts_what_is_left_and_its_validations():
    curve = [Validation(step=step, tokens=0, train_loss_nats=None, loss_nats=1.0) for step in (0, 100)]
    progress = Progress(step=150, seconds={"train": 1.0, "validation": 8.0}, curve=curve)
    pace = Pace(warmup_steps=0, log_every=1, eval_every=100, checkpoint_every=100)
    assert rest_in_words(progress, 0.5, 320, pace) == "170 steps left, about 97 seconds"  # and 3 validations of 4 s


@pytest.mark.parametrize(
    "settings",
    [{"optimizer": "muon"}, {"ema_decay": 0.9, "keep_checkpoints": 1}, {"checkpoint_every": 20, **WSD}],
    ids=str,
)
def test_the_disk_that_is_said_is_what_a_training_leaves(settings, tokens, make_config, tmp_path):
    config = make_config(model={"hidden_size": 96, "num_attention_heads": 2}, training={"max_steps": 6, **settings})
    plan = plan_training(tokens, config)
    training = plan.config.training
    state = new_state(plan, tokens, torch.device("cpu"))
    weights = 4 * sum(parameter.numel() for parameter in state.model.parameters())
    said, _ = disk_bytes(state, training, training.pace(plan.steps), plan.steps, tokens)
    train(tokens, config, tmp_path / "out", ignore)
    there = bytes_there(tmp_path / "out") + weights  # of the version
    assert said < there < 1.1 * said  # with the files that say what it is


def test_a_disk_without_room_is_noticed_before_the_first_step(tokens, make_config, tmp_path, monkeypatch):
    check_room(tmp_path, 1)
    with pytest.raises(StateNotSaved, match="needs 1153 PB"):
        check_room(tmp_path, 2**60)
    monkeypatch.setattr(estimate, "FLOAT_BYTES", 2**50)  # of a weight
    with pytest.raises(StateNotSaved, match="make room"):
        train(tokens, make_config(), tmp_path / "out", ignore)
    assert not list(Path(tmp_path / "out").glob("states/*"))


def test_a_training_says_what_it_takes_and_one_that_goes_on_what_the_rest_takes(
    tokens, make_config, tmp_path, caplog, monkeypatch
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(estimate, "PATIENCE_SECONDS", float("inf"))  # on a slow machine ten steps take longer

    def said() -> list[str]:
        return [line for line in caplog.messages if " left, about " in line]

    config = make_config(training={"max_steps": 60, "checkpoint_every": 20, "eval_every": 20})
    with pytest.raises(Interruption):
        train(tokens, config, tmp_path / "out", interrupt_at(45))
    (first,) = said()
    caplog.clear()
    train(tokens, config, tmp_path / "out", ignore)
    (second,) = said()
    assert first.startswith("50 steps left, about ")
    assert second.startswith("10 steps left, about ")
    for line in (first, second):
        assert "; memory at the peak: " in line and "; disk: " in line and line.endswith(" more with the version")
