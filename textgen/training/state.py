"""The state of a training: how it is saved while it runs, and how the newest state that verifies is restored."""

import errno
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor
from torch.optim import Optimizer

from textgen.errors import Damaged, InputError, StateNotSaved
from textgen.files import Manifest, lock_file, locked, new_folder, remove, set_aside, sha256_file, write_atomic
from textgen.model.pretrained import WEIGHTS_FILE, read_weights, write_weights
from textgen.model.transformer import LanguageModel
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.figures import LOG_FILE
from textgen.training.folder import KEY_FILE, STATES, STATES_FOLDER, TRUNK_FOLDER
from textgen.training.progress import Progress

log = logging.getLogger(__name__)

OPTIMIZER_FILE = "optimizer.safetensors"
AVERAGED_FILE = "averaged.safetensors"
BEST_FILE = "best.safetensors"
WRITTEN = (WEIGHTS_FILE, "*.json", "*.txt", LOG_FILE)  # in the training folder, while it goes on
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@dataclass
class TrainingState:
    """All that a training changes."""

    model: LanguageModel
    averaged: LanguageModel | None  # the exponential moving average of the weights, where there is one
    optimizers: list[Optimizer]
    progress: Progress = field(default_factory=Progress)

    @property
    def evaluated(self) -> LanguageModel:
        """The weights that are validated and kept: the averaged ones where there are any."""
        return self.averaged or self.model


class StateManifest(Manifest):
    """A saved training state."""

    progress: Progress
    sha256: dict[str, str]

    def sha256_by_file(self) -> dict[str, str]:
        return self.sha256


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turn a disk that takes no more into a message.

    Raises:
        StateNotSaved: with that message.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise StateNotSaved(
            f"{error.filename or out} could not be written: {error.strerror}; the saved states are as they were. "
            "Make room and give the same command again"
        ) from error


def save_state(out: Path, key: str, state: TrainingState, keep: int) -> None:
    """Write the state of `progress.step` under `out`/states, whole or not at all; keep the newest `keep`.

    It holds a copy of the best weights so far, `out`/model.safetensors, too: they are part of how the training ends.

    Raises:
        StateNotSaved: the disk is full, or failed otherwise.
    """
    step = state.progress.step
    folder = out / STATES_FOLDER / f"step-{step:08d}"
    if not folder.exists():
        write_state(out, folder, key, state)
    for old in saved_states(out)[:-keep]:
        remove(old)


def write_state(out: Path, folder: Path, key: str, state: TrainingState, figures: str = "") -> None:
    """Write a state and the best weights so far, those in `out`, as `folder`; with the `figures` up to it, if given.

    Raises:
        StateNotSaved: the disk is full, or failed otherwise.
    """
    step = state.progress.step
    try:
        with new_folder(folder) as temporary:
            write_weights(state.model, temporary / WEIGHTS_FILE)
            write_atomic(temporary / OPTIMIZER_FILE, save(_moments(state.optimizers), metadata={"format": "pt"}))
            write_atomic(temporary / BEST_FILE, (out / WEIGHTS_FILE).read_bytes())
            if state.averaged is not None:
                write_weights(state.averaged, temporary / AVERAGED_FILE)
            if figures:
                write_atomic(temporary / LOG_FILE, figures)
            sha256 = {path.name: sha256_file(path) for path in sorted(temporary.iterdir())}
            StateManifest(key=key, progress=state.progress, sha256=sha256).write(temporary)
    except OSError as error:
        saved = saved_states(out)
        kept = f"the state of step {_step(saved[-1])} is intact" if saved else "there is none before it"
        raise StateNotSaved(
            f"the training state of step {step} could not be saved to {folder}: {error.strerror or error}; {kept}. "
            "Make room and give the same command again"
        ) from error


def newest_state(out: Path, key: str) -> StateManifest | None:
    """Return the newest state that verifies, or None; a damaged one is set aside.

    What a killed process was writing or deleting is removed.
    """
    leftovers = [path for name in WRITTEN for path in out.glob(f".{name}.*")]
    for home in (STATES_FOLDER, TRUNK_FOLDER):
        leftovers += (out / home).glob(".step-*")
    for leftover in leftovers:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    for folder in reversed(saved_states(out)):
        try:
            manifest = StateManifest.read(folder)
            if manifest.key != key:
                raise Damaged(f"{folder} is of another training: key {manifest.key}, not {key}")
        except Damaged as damage:
            set_aside(folder, damage)
        else:
            return manifest
    return None


def restore_state(saved: StateManifest, state: TrainingState) -> None:
    """Fill `state` from a saved one that was verified."""
    folder = saved.folder
    read_weights(state.model, folder / WEIGHTS_FILE)
    if state.averaged is not None:
        read_weights(state.averaged, folder / AVERAGED_FILE)
    restore_moments(saved, state.optimizers)
    state.progress = saved.progress


def restore_moments(saved: StateManifest, optimizers: list[Optimizer]) -> None:
    """Have the optimizers remember what those of a saved state did."""
    moments = load_file(saved.folder / OPTIMIZER_FILE)
    for number, optimizer in enumerate(optimizers):
        by_parameter: dict[int, dict[str, Tensor]] = {}
        for name, tensor in moments.items():
            of, parameter, moment = name.split(".")
            if int(of) == number:
                by_parameter.setdefault(int(parameter), {})[moment] = tensor
        optimizer.load_state_dict({"state": by_parameter, "param_groups": optimizer.state_dict()["param_groups"]})


def restore_best(saved: StateManifest, out: Path) -> None:
    """Put the best weights that a state holds where the training leaves them."""
    write_atomic(out / WEIGHTS_FILE, (saved.folder / BEST_FILE).read_bytes())


def _moments(optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """Return what the optimizers remember: `<optimizer>.<parameter>.<name>` -> a tensor on the CPU."""
    return {
        f"{number}.{parameter}.{name}": tensor.cpu().contiguous()
        for number, optimizer in enumerate(optimizers)
        for parameter, moments in optimizer.state_dict()["state"].items()
        for name, tensor in moments.items()
    }


def saved_states(out: Path) -> list[Path]:
    """Return the folders of the saved states, the oldest first."""
    states = (out / STATES_FOLDER).glob(STATES)
    return sorted(path for path in states if path.is_dir())


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


@contextmanager
def lock_training(out: Path) -> Iterator[None]:
    """Let one training at a time be in the folder `out`.

    Raises:
        InputError: `out` is no training folder.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock_file(out), f"another process trains in {out}; waiting for it"):
        leftovers = list(out.glob(f".{KEY_FILE}.*"))  # of a process that was killed when it began
        if out.exists() and not (out / KEY_FILE).exists() and not (out.is_dir() and {*out.iterdir()} == {*leftovers}):
            raise InputError(f"{out} is there and is no training folder")
        for leftover in leftovers:
            leftover.unlink()
        yield


def is_finished(out: Path, key: str) -> bool:
    """Return whether the training in `out` is finished and sound; of a damaged one, the end is set aside.

    Raises:
        InputError: a training of another key is there, finished or not.
    """
    if (out / KEY_FILE).exists() and (out / KEY_FILE).read_text().strip() != key:
        raise InputError(
            f"{out}: a training of another configuration, text or training.init_from is here; choose another folder"
        )
    if (out / CheckpointManifest.FILE).exists():
        try:
            CheckpointManifest.read(out)
            return True
        except Damaged as damage:
            for name in (CheckpointManifest.FILE, WEIGHTS_FILE):
                if (out / name).exists():
                    set_aside(out / name, damage)
    return False
