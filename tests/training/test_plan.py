"""What a training will do, as it is known before it starts."""

import logging

import pytest

from tests.trainings import ignore
from textgen.config import find_config, load_config, shipped_configs
from textgen.sections import Pace, TrainingConfig
from textgen.training.plan import train_key
from textgen.training.train import train

AS_BEFORE = {"warmup_steps": 100, "eval_every": 100, "log_every": 10, "checkpoint_every": 100}


@pytest.mark.parametrize(
    ("steps", "pace"), [(1, (0, 1, 1, 1)), (60, (6, 3, 6, 6)), (200, (20, 10, 20, 20)), (5000, (100, 10, 100, 100))]
)
def test_the_pace_of_a_short_training_follows_its_length(steps, pace):
    assert TrainingConfig(max_steps=steps).pace(steps) == pace


def test_what_is_set_is_not_scaled():
    training = TrainingConfig(max_steps=60, warmup_steps=0, log_every=7, eval_every=100, checkpoint_every=2)
    assert training.pace(60) == Pace(warmup_steps=0, log_every=7, eval_every=100, checkpoint_every=2)


@pytest.mark.parametrize("name", shipped_configs())
@pytest.mark.parametrize("steps", [1, 60])
def test_a_short_run_of_a_shipped_configuration_warms_up_shortly_and_validates_on_its_way(name, steps):
    pace = load_config(find_config(name), [f"training.max_steps={steps}"]).training.pace(steps)
    assert pace.warmup_steps <= steps / 10
    assert steps == 1 or max(pace.eval_every, pace.checkpoint_every) <= steps / 2


FILE = "training: {max_steps: 1000, warmup_steps: 30, eval_every: 250, checkpoint_every: 20, batch_size: 3}\n"
TOO_LONG = "training.warmup_steps is 20 in place of 30, training.eval_every is 20 in place of 250"


@pytest.mark.parametrize(
    ("overrides", "pace", "said"),
    [
        (["training.max_steps=200"], (20, 10, 20, 20), TOO_LONG),
        (["training.max_steps=500"], (30, 10, 250, 20), ""),
        (["training.max_steps=2000"], (30, 10, 250, 20), ""),
        (["training.max_steps=200", "training.eval_every=250"], (20, 10, 250, 20), TOO_LONG[: TOO_LONG.index(", ")]),
        (["training.max_steps=200", "training.schedule=wsd"], (30, 10, 250, 20), ""),
        (
            ["training.max_steps=20", "training.schedule=wsd"],
            (2, 1, 250, 2),
            "training.warmup_steps is 2 in place of 30, training.checkpoint_every is 2 in place of 20",
        ),
        (["training={max_steps: 200, warmup_steps: 30, eval_every: 250}"], (30, 10, 250, 20), ""),
    ],
    ids=str,
)
def test_the_intervals_of_a_file_are_for_its_own_length(overrides, pace, said, tmp_path, caplog):
    """What is typed beside the length is taken as it is."""
    caplog.set_level(logging.INFO)
    (tmp_path / "mine.yaml").write_text(FILE)
    training = load_config(tmp_path / "mine.yaml", overrides).training
    assert training.max_steps is not None and training.pace(training.max_steps) == pace
    lines = [f"mine.yaml is for a longer training than {training.max_steps} steps: {said}"] if said else []
    assert caplog.messages == lines


def test_a_key_has_what_null_stands_for(tokens, make_config):
    nulls = dict.fromkeys(AS_BEFORE)
    for length in ({"max_steps": 1000}, {"epochs": 160.0, "max_steps": None}):
        key = train_key(tokens, make_config(training={**nulls, **length}))
        assert key == train_key(tokens, make_config(training={**AS_BEFORE, **length}))
        for name in ("warmup_steps", "eval_every"):
            assert key != train_key(tokens, make_config(training={**nulls, **length, name: 99}))


def test_a_checkpoint_records_numbers(tokens, make_config, tmp_path):
    config = make_config(training=dict.fromkeys(AS_BEFORE))
    training = train(tokens, config, tmp_path / "out", ignore).config["training"]
    assert {name: training[name] for name in AS_BEFORE} == TrainingConfig().pace(20)._asdict()
