"""What else decides how a training ends: averaged weights, early stopping, and states saved by the minute."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import textgen.training.step
import textgen.training.train
import textgen.training.validation
from tests.trainings import Interruption, ignore, interrupt_at, refuse
from textgen.config import Config
from textgen.evaluation.protocols import blocks
from textgen.evaluation.scoring import score
from textgen.files import Manifest
from textgen.model.loss import NextTokenLoss
from textgen.model.pretrained import WEIGHTS_FILE, load_model, read_weights
from textgen.model.transformer import LanguageModel
from textgen.text.tokens import load_stream
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.folder import STATES_FOLDER
from textgen.training.state import AVERAGED_FILE
from textgen.training.train import Run, train

STEPS = 20
DECAY = 0.9
CURVE = [5.0, 4.0, 4.0, 3.0, 6.0, 3.5, 2.0, 7.0, 2.0, 7.0, 7.0, 1.0]  # a loss for each step, to stop at


def state(out: Path, step: int) -> Path:
    return out / STATES_FOLDER / f"step-{step:08d}"


# Averaged weights


@pytest.fixture(scope="module")
def averaging(make_config) -> Config:
    """Return a training whose every state is kept."""
    return make_config(
        model={"tie_word_embeddings": True},
        training={"ema_decay": DECAY, "checkpoint_every": 1, "keep_checkpoints": STEPS, "eval_blocks": None},
    )


@pytest.fixture(scope="module")
def averaged(tokens, averaging, tmp_path_factory) -> CheckpointManifest:
    return train(tokens, averaging, tmp_path_factory.mktemp("averaged") / "out", ignore)


def model_of(config: Config, tokens, weights: Path) -> LanguageModel:
    model = LanguageModel(config.model, tokens.vocab_size)
    read_weights(model, weights)
    return model


@pytest.mark.parametrize("bad", [[], [0], [3, 4]])
def test_the_average_is_torchs_of_the_weights_after_every_step(bad, tokens, averaging, averaged, tmp_path, monkeypatch):
    out, forward, taken = averaged.folder, NextTokenLoss.forward, []
    if bad:

        def spoiled(*arguments) -> torch.Tensor:
            taken.append(1)
            return forward(*arguments) * (torch.nan if len(taken) - 1 in bad else 1.0)

        monkeypatch.setattr(NextTokenLoss, "forward", spoiled)
        out = tmp_path / "out"
        assert train(tokens, averaging, out, ignore).bad_steps == len(bad)
    oracle = AveragedModel(LanguageModel(averaging.model, tokens.vocab_size), multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    for step in range(1, STEPS + 1):
        oracle.update_parameters(model_of(averaging, tokens, state(out, step) / WEIGHTS_FILE))
        ours = load_file(state(out, step) / AVERAGED_FILE)
        for name, parameter in oracle.module.named_parameters():
            assert torch.equal(ours[name], parameter), (step, name)
    last = load_file(state(out, STEPS) / WEIGHTS_FILE)
    assert any(not torch.equal(ours[name], last[name]) for name in ours), "nothing was averaged"


def test_the_averaged_weights_are_those_validated_and_left(tokens, averaging, averaged):
    validation_N = load_stream(tokens, "validation")
    windows = list(blocks(len(validation_N), 16))

    def loss_nats(model: LanguageModel) -> float:
        nats, scored = score(model.eval(), validation_N, windows, averaging.evaluation.batch_size)
        return nats / scored

    for point in averaged.curve[1:]:
        assert loss_nats(model_of(averaging, tokens, state(averaged.folder, point.step) / AVERAGED_FILE)) == (
            pytest.approx(point.loss_nats, abs=1e-9)
        )
    best = averaged.curve[averaged.best_step // 5]
    assert (averaged.folder / WEIGHTS_FILE).read_bytes() == (
        state(averaged.folder, averaged.best_step) / AVERAGED_FILE
    ).read_bytes()
    assert loss_nats(load_model(averaged.folder).model) == pytest.approx(best.loss_nats, abs=1e-9)


def test_averaging_does_not_change_the_weights_that_are_trained(tokens, averaging, averaged, tmp_path):
    training = averaging.training.model_copy(update={"ema_decay": None})
    train(tokens, averaging.model_copy(update={"training": training}), tmp_path / "out", ignore)
    plain, beside = (state(out, STEPS) / WEIGHTS_FILE for out in (tmp_path / "out", averaged.folder))
    assert plain.read_bytes() == beside.read_bytes()
    assert not (state(tmp_path / "out", STEPS) / AVERAGED_FILE).exists()


def test_the_average_goes_on_over_an_interruption(tokens, averaging, averaged, tmp_path):
    for step in (5, 15):
        with pytest.raises(Interruption):
            train(tokens, averaging, tmp_path / "out", interrupt_at(step))
    train(tokens, averaging, tmp_path / "out", ignore)
    for file in (WEIGHTS_FILE, f"{STATES_FOLDER}/step-{STEPS:08d}/{AVERAGED_FILE}"):
        assert (tmp_path / "out" / file).read_bytes() == (averaged.folder / file).read_bytes()


# Early stopping


@pytest.fixture
def validations(monkeypatch) -> list[int]:
    """Have the validation of each step find the loss that CURVE has for it, and return a list of these steps."""
    validated: list[int] = []
    validate = Run.validate

    def watched(run: Run) -> None:
        validated.append(run.progress.step)
        validate(run)

    monkeypatch.setattr(Run, "validate", watched)
    monkeypatch.setattr(textgen.training.validation, "score", lambda *arguments, **named: (2 * CURVE[validated[-1]], 2))
    return validated


def stopping(make_config, patience: int | None) -> Config:
    return make_config(
        training={
            "max_steps": len(CURVE) - 1, "early_stopping_patience": patience, "eval_every": 1, "checkpoint_every": 1,
            "keep_checkpoints": len(CURVE), "log_every": 1,
        }
    )  # fmt: skip


# The step it stops after and its best: an equal loss is no new best. Losses 2.0, 7.0, 2.0, 7.0 and 7.0 follow step 5.
ENDS = {1: (2, 1), 2: (5, 3), 3: (9, 6), 4: (10, 6), 5: (11, 11), 6: (11, 11), None: (11, 11)}


@pytest.mark.parametrize("patience", ENDS)
def test_a_training_stops_after_so_many_validations_without_a_new_best(
    patience, tokens, make_config, tmp_path, validations
):
    last, best = ENDS[patience]
    manifest = train(tokens, stopping(make_config, patience), tmp_path / "out", ignore)
    assert validations == list(range(last + 1))
    assert (manifest.steps, manifest.best_step) == (last, best)
    assert manifest.stopped_early == (last < len(CURVE) - 1)
    assert manifest.tokens_trained == last * 8 * 16
    assert [point.loss_nats for point in manifest.curve] == CURVE[: last + 1]
    assert (tmp_path / "out" / WEIGHTS_FILE).read_bytes() == (state(tmp_path / "out", best) / WEIGHTS_FILE).read_bytes()


def test_a_training_that_stopped_early_is_finished(tokens, make_config, tmp_path, validations):
    config = stopping(make_config, 2)
    manifest = train(tokens, config, tmp_path / "out", ignore)
    assert train(tokens, config, tmp_path / "out", refuse) == manifest
    (tmp_path / "out" / Manifest.FILE).unlink()  # killed before it was written
    again = train(tokens, config, tmp_path / "out", refuse)
    assert (again.steps, again.stopped_early, again.curve) == (manifest.steps, True, manifest.curve)
    assert again.sha256 == manifest.sha256


@pytest.mark.parametrize("steps", [[4], [5], [3, 4, 5, 7, 8], list(range(10))])
def test_patience_goes_on_over_interruptions(steps, tokens, make_config, tmp_path, validations):
    config = stopping(make_config, 3)
    for step in steps:
        with pytest.raises(Interruption):
            train(tokens, config, tmp_path / "out", interrupt_at(step))
    manifest = train(tokens, config, tmp_path / "out", ignore)
    assert (manifest.steps, manifest.best_step, manifest.stopped_early) == (9, 6, True)
    assert [point.loss_nats for point in manifest.curve] == CURVE[:10]


def test_patience_counts_validations_and_not_steps(tokens, make_config, tmp_path, validations, monkeypatch):
    monkeypatch.setattr(textgen.training.validation, "score", lambda *arguments, **named: (2.0 + validations[-1], 1))
    config = make_config(training={"early_stopping_patience": 3, "eval_every": 4})
    manifest = train(tokens, config, tmp_path / "out", ignore)
    assert validations == [0, 4, 8, 12]
    assert (manifest.steps, manifest.best_step, manifest.stopped_early) == (12, 0, True)


# States by the minute


RARELY = {"checkpoint_every": 1000, "eval_every": 1000, "log_every": 1, "keep_checkpoints": STEPS}


@pytest.fixture(scope="module")
def by_the_step(tokens, make_config, tmp_path_factory) -> CheckpointManifest:
    return train(tokens, make_config(training=RARELY), tmp_path_factory.mktemp("by-the-step") / "out", ignore)


def saved_steps(out: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in sorted((out / STATES_FOLDER).iterdir())]


@pytest.mark.parametrize(("minutes", "saved"), [(1.0, [3, 6, 9, 12, 15, 18]), (2.4, [5, 10, 15]), (100.0, [])])
def test_a_state_is_saved_after_so_many_minutes_and_the_result_is_unchanged(
    minutes, saved, tokens, make_config, by_the_step, tmp_path, monkeypatch
):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(textgen.training.train, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def half_a_minute(step: int, figures: dict[str, float]) -> None:
        clock.now += 30.0 if "train/loss_nats" in figures else 0.0

    config = make_config(training={**RARELY, "checkpoint_every_minutes": minutes})
    ours = train(tokens, config, tmp_path / "out", half_a_minute)
    assert saved_steps(tmp_path / "out") == [*saved, STEPS]
    assert saved_steps(by_the_step.folder) == [STEPS]
    assert (ours.key, ours.sha256, ours.curve) == (by_the_step.key, by_the_step.sha256, by_the_step.curve)
    for file in state(by_the_step.folder, STEPS).glob("*.safetensors"):
        assert file.read_bytes() == (state(tmp_path / "out", STEPS) / file.name).read_bytes()


def test_minutes_are_counted_from_the_last_state_whatever_it_was_saved_for(tokens, make_config, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(textgen.training.train, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def half_a_minute(step: int, figures: dict[str, float]) -> None:
        clock.now += 30.0 if "train/loss_nats" in figures else 0.0

    config = make_config(
        training={"checkpoint_every": 5, "checkpoint_every_minutes": 1.6, "log_every": 1, "eval_every": 1000,
                  "keep_checkpoints": STEPS}
    )  # fmt: skip
    train(tokens, config, tmp_path / "out", half_a_minute)
    assert saved_steps(tmp_path / "out") == [4, 5, 9, 10, 14, 15, 19, 20]
