"""The training state: all of it comes back, and what is damaged is never used."""

import copy
from pathlib import Path

import pytest
import torch

from textgen.errors import StateNotSaved
from textgen.files import Manifest
from textgen.model.loss import NextTokenLoss
from textgen.model.pretrained import WEIGHTS_FILE, write_weights
from textgen.model.transformer import LanguageModel
from textgen.sections import ModelConfig, TrainingConfig
from textgen.training import state
from textgen.training.folder import STATES_FOLDER
from textgen.training.optim import build_optimizers
from textgen.training.progress import Validation
from textgen.training.state import (
    AVERAGED_FILE,
    BEST_FILE,
    OPTIMIZER_FILE,
    TrainingState,
    newest_state,
    restore_best,
    restore_state,
    save_state,
)

KEY = "a key"


class Run:
    """A tiny training by hand."""

    def __init__(self, seed: int = 0, optimizer: str = "adamw", averaged: bool = False) -> None:
        torch.manual_seed(seed)
        config = ModelConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
        model = LanguageModel(config.model_copy(update={"dropout": 0.2}), vocab_size=20)
        optimizers = build_optimizers(model, TrainingConfig(optimizer=optimizer))
        self.state = TrainingState(model, copy.deepcopy(model) if averaged else None, optimizers)

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            torch.manual_seed(self.state.progress.step)
            ids_BT = torch.randint(20, (2, 9))
            NextTokenLoss(self.state.model, False)(ids_BT[:, :-1], ids_BT[:, 1:]).backward()
            for optimizer in self.state.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            self.state.progress.step += 1

    def save(self, out: Path, key: str = KEY, keep: int = 9) -> None:
        write_weights(self.state.model, out / WEIGHTS_FILE)  # the best so far
        save_state(out, key, self.state, keep)

    def tensors(self) -> list:
        averaged = self.state.averaged.state_dict() if self.state.averaged else {}
        moments = [optimizer.state_dict()["state"] for optimizer in self.state.optimizers]
        return [self.state.model.state_dict(), averaged, *moments]


def saved_run(out: Path, *steps: int, keep: int = 9) -> Run:
    run = Run()
    for step in steps:
        run.advance(step - run.state.progress.step)
        run.save(out, keep=keep)
    return run


def restored_step(out: Path, key: str = KEY) -> int | None:
    run, saved = Run(seed=1), newest_state(out, key)
    if saved is None:
        return None
    restore_state(saved, run.state)
    return run.state.progress.step


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_restored_run_goes_on_as_the_saved_one(optimizer, averaged, tmp_path):
    restored, saved = (Run(seed, optimizer, averaged) for seed in (1, 0))
    saved.advance(3)
    progress = saved.state.progress
    progress.seconds, progress.bad_steps, progress.bad_steps_in_a_row = {"train": 1.5}, 4, 2
    progress.since_log.add(2.0)
    progress.since_validation.add(3.0)
    progress.curve.append(Validation(step=3, tokens=48, train_loss_nats=2.5, loss_nats=3.25))
    saved.save(tmp_path)
    at_the_save = progress.model_copy(deep=True)
    saved.advance(2)

    newest = newest_state(tmp_path, KEY)
    assert newest is not None
    restore_state(newest, restored.state)
    assert restored.state.progress == at_the_save
    restored.advance(2)
    torch.testing.assert_close(restored.tensors(), saved.tensors(), atol=0, rtol=0)


def test_the_best_weights_come_back_with_the_state(tmp_path):
    run = saved_run(tmp_path, 1)
    best = (tmp_path / WEIGHTS_FILE).read_bytes()
    run.advance(1)
    write_weights(run.state.model, tmp_path / WEIGHTS_FILE)
    assert (tmp_path / WEIGHTS_FILE).read_bytes() != best
    restore_best(newest_state(tmp_path, KEY), tmp_path)
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == best


def test_what_a_killed_process_left_half_done_is_removed(tmp_path):
    saved_run(tmp_path, 1)
    (tmp_path / STATES_FOLDER / ".step-00000002.x").mkdir()
    (tmp_path / STATES_FOLDER / ".step-00000002.x" / WEIGHTS_FILE).write_text("half")
    (tmp_path / f".{WEIGHTS_FILE}.x").write_text("half")
    assert restored_step(tmp_path) == 1
    assert not [path for path in tmp_path.rglob(".*")]


def test_nothing_is_restored_where_nothing_was_saved(tmp_path):
    assert restored_step(tmp_path) is None


def test_the_newest_states_are_kept(tmp_path):
    saved_run(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(path.name for path in (tmp_path / STATES_FOLDER).iterdir()) == ["step-00000003", "step-00000004"]
    assert restored_step(tmp_path) == 4


@pytest.mark.parametrize("file", [WEIGHTS_FILE, OPTIMIZER_FILE, BEST_FILE, Manifest.FILE])
def test_a_damaged_state_is_set_aside_and_the_one_before_restored(file, tmp_path, flip_bit, caplog):
    saved_run(tmp_path, 1, 2)
    newest = tmp_path / STATES_FOLDER / "step-00000002"
    flip_bit(newest / file)
    assert restored_step(tmp_path) == 1
    assert newest.with_name("step-00000002.damaged-1").is_dir() and not newest.exists()
    assert f"{newest / file} is damaged" in caplog.text


@pytest.mark.parametrize("file", [WEIGHTS_FILE, OPTIMIZER_FILE, BEST_FILE, Manifest.FILE])
def test_a_state_that_lacks_a_file_is_set_aside(file, tmp_path):
    saved_run(tmp_path, 1)
    (tmp_path / STATES_FOLDER / "step-00000001" / file).unlink()
    assert restored_step(tmp_path) is None


def test_a_state_of_another_training_is_set_aside(tmp_path):
    saved_run(tmp_path, 1)
    assert restored_step(tmp_path, key="another key") is None
    assert restored_step(tmp_path) is None


def test_a_save_that_is_cut_short_leaves_nothing(tmp_path, monkeypatch):
    run = saved_run(tmp_path, 1)

    def fail(model: LanguageModel, path: Path) -> None:
        path.write_bytes(b"the beginning of")
        raise OSError("no space left on device")

    monkeypatch.setattr(state, "write_weights", fail)
    run.advance(1)
    with pytest.raises(StateNotSaved, match=r"step 2 could not be saved.*no space left.*the state of step 1 is intact"):
        run.save(tmp_path)
    assert [path.name for path in (tmp_path / STATES_FOLDER).iterdir()] == ["step-00000001"]
    assert restored_step(tmp_path) == 1


def test_a_state_is_safetensors_and_json(tmp_path):
    saved_run(tmp_path, 1)
    files = {path.name for path in (tmp_path / STATES_FOLDER / "step-00000001").iterdir()}
    assert files == {WEIGHTS_FILE, OPTIMIZER_FILE, BEST_FILE, Manifest.FILE}
    run = Run(averaged=True)
    run.advance(2)
    run.save(tmp_path)
    files = {path.name for path in (tmp_path / STATES_FOLDER / "step-00000002").iterdir()}
    assert files == {WEIGHTS_FILE, OPTIMIZER_FILE, BEST_FILE, AVERAGED_FILE, Manifest.FILE}
