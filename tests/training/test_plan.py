"""What a training will do, as it is known before it starts."""

import pytest

from tests.trainings import ignore
from textgen.config import find_config, load_config
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


def test_a_short_run_of_the_default_configuration_is_no_mistake():
    assert load_config(find_config("default"), ["training.max_steps=60"]).training.pace(60).warmup_steps == 6


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
