"""The training state: saved whole, restored from the newest one that verifies."""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save

from textgen.export import WEIGHTS_FILE, read_weights, write_weights
from textgen.files import Damaged, Manifest, new_folder, set_aside, sha256_file, write_atomic
from textgen.model import LanguageModel

log = logging.getLogger(__name__)

STATES_FOLDER = "states"
OPTIMIZER_FILE = "optimizer.safetensors"
BEST_FILE = "best.safetensors"


class Validation(BaseModel):
    """One validation while training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    tokens: int  # trained on so far
    train_loss_nats: float | None  # mean since the validation before; None before the first step
    loss_nats: float


class Progress(BaseModel):
    """How far a training has come; with the weights and the optimizer, all that the next step depends on."""

    model_config = ConfigDict(extra="forbid")

    step: int = 0
    seconds: float = 0.0
    loss_sum_nats: float = 0.0  # of the steps since the last validation
    loss_count: int = 0
    curve: list[Validation] = []

    @property
    def last_validated(self) -> int:
        """Return the step of the last validation, -1 before the first."""
        return self.curve[-1].step if self.curve else -1

    @property
    def best(self) -> Validation:
        """Return the validation with the lowest loss, the earliest of equals."""
        return min(self.curve, key=lambda validation: validation.loss_nats)


class StateManifest(Manifest):
    """A saved training state."""

    progress: Progress
    optimizer_steps: list[float]
    sha256: dict[str, str]

    def sha256_by_file(self) -> dict[str, str]:
        return self.sha256


def save_state(
    out: Path, key: str, model: LanguageModel, optimizer: torch.optim.Optimizer, progress: Progress, keep: int
) -> None:
    """Write the state of `progress.step` under `out`/states, whole or not at all; keep the newest `keep`.

    It holds a copy of the best weights so far, `out`/model.safetensors, too: they are part of how the training ends.
    """
    folder = out / STATES_FOLDER / f"step-{progress.step:08d}"
    if folder.exists():
        return
    moments, steps = {}, []
    for number, state in sorted(optimizer.state_dict()["state"].items()):
        steps.append(float(state["step"]))
        moments[f"{number}.exp_avg"], moments[f"{number}.exp_avg_sq"] = state["exp_avg"], state["exp_avg_sq"]
    tensors = {name: tensor.cpu().contiguous() for name, tensor in moments.items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    with new_folder(folder) as temporary:
        write_weights(model, temporary / WEIGHTS_FILE)
        write_atomic(temporary / OPTIMIZER_FILE, save(tensors, metadata={"format": "pt"}))
        write_atomic(temporary / BEST_FILE, (out / WEIGHTS_FILE).read_bytes())
        sha256 = {name: sha256_file(temporary / name) for name in (WEIGHTS_FILE, OPTIMIZER_FILE, BEST_FILE)}
        StateManifest(key=key, progress=progress, optimizer_steps=steps, sha256=sha256).write(temporary)
    for old in _states(out)[:-keep]:
        shutil.rmtree(old)


def restore_state(out: Path, key: str, model: LanguageModel, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Restore the newest state that verifies and return its progress, or None; a damaged one is set aside."""
    for folder in reversed(_states(out)):
        try:
            manifest = StateManifest.read(folder)
            if manifest.key != key:
                raise Damaged(f"{folder} is of another training: key {manifest.key}, not {key}")
        except Damaged as damage:
            set_aside(folder, damage)
            continue
        read_weights(model, folder / WEIGHTS_FILE)
        _restore_optimizer(optimizer, load_file(folder / OPTIMIZER_FILE), manifest.optimizer_steps)
        write_atomic(out / WEIGHTS_FILE, (folder / BEST_FILE).read_bytes())
        log.info("continuing from step %d", manifest.progress.step)
        return manifest.progress
    return None


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], steps: list[float]) -> None:
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    state: dict[int, dict[str, Any]] = {
        number: {
            "step": torch.tensor(step),
            "exp_avg": tensors[f"{number}.exp_avg"],
            "exp_avg_sq": tensors[f"{number}.exp_avg_sq"],
        }
        for number, step in enumerate(steps)
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _states(out: Path) -> list[Path]:
    """Return the folders of the saved states, the oldest first."""
    states = (out / STATES_FOLDER).glob("step-????????")
    return sorted(path for path in states if path.is_dir())
