"""The training state: all of it comes back, and what is damaged is never used."""

import functools
from pathlib import Path

import pytest
import torch

from textgen import checkpoint
from textgen.checkpoint import BEST_FILE, OPTIMIZER_FILE, STATES_FOLDER, Progress, Validation, restore_state, save_state
from textgen.config import ModelConfig, TrainingConfig
from textgen.export import WEIGHTS_FILE, write_weights
from textgen.files import Manifest
from textgen.model import LanguageModel, next_token_loss
from textgen.optim import build_optimizer

KEY = "a key"


class Run:
    """A tiny training by hand."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        config = ModelConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
        self.model = LanguageModel(config.model_copy(update={"dropout": 0.2}), vocab_size=20)
        self.optimizer = build_optimizer(self.model, TrainingConfig())
        self.progress = Progress()

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            ids_BT = torch.randint(20, (2, 9))
            next_token_loss(self.model, ids_BT[:, :-1], ids_BT[:, 1:]).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.progress.step += 1

    def save(self, out: Path, key: str = KEY, keep: int = 9) -> None:
        write_weights(self.model, out / WEIGHTS_FILE)  # the best so far
        save_state(out, key, self.model, self.optimizer, self.progress, keep)


def saved_run(out: Path, *steps: int, keep: int = 9) -> Run:
    run = Run()
    for step in steps:
        run.advance(step - run.progress.step)
        run.save(out, keep=keep)
    return run


def restored_step(out: Path, key: str = KEY) -> int | None:
    run = Run(seed=1)
    progress = restore_state(out, key, run.model, run.optimizer)
    return progress.step if progress else None


def test_a_restored_run_goes_on_as_the_saved_one(tmp_path):
    restored, saved = Run(seed=1), Run()
    saved.advance(3)
    saved.progress.seconds = 1.5
    saved.progress.curve.append(Validation(step=3, tokens=48, train_loss_nats=2.5, loss_nats=3.25))
    saved.save(tmp_path)
    at_the_save = saved.progress.model_copy()
    saved.advance(2)
    saved_random_state = torch.get_rng_state()

    restored.progress = restore_state(tmp_path, KEY, restored.model, restored.optimizer)
    assert restored.progress == at_the_save
    restored.advance(2)
    assert torch.equal(torch.get_rng_state(), saved_random_state)
    assert_equal = functools.partial(torch.testing.assert_close, atol=0, rtol=0)
    assert_equal(restored.model.state_dict(), saved.model.state_dict())
    assert_equal(restored.optimizer.state_dict(), saved.optimizer.state_dict())


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

    monkeypatch.setattr(checkpoint, "write_weights", fail)
    run.advance(1)
    with pytest.raises(OSError, match="no space left"):
        run.save(tmp_path)
    assert [path.name for path in (tmp_path / STATES_FOLDER).iterdir()] == ["step-00000001"]
    assert restored_step(tmp_path) == 1


def test_a_state_is_safetensors_and_json(tmp_path):
    saved_run(tmp_path, 1)
    files = {path.name for path in (tmp_path / STATES_FOLDER / "step-00000001").iterdir()}
    assert files == {WEIGHTS_FILE, OPTIMIZER_FILE, BEST_FILE, Manifest.FILE}
