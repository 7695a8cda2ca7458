"""What the rest of a training will take: time, estimated from its first steps, memory as measured, and disk."""

import shutil
from pathlib import Path

from torch.optim import Muon

from textgen.errors import StateNotSaved
from textgen.sections import Pace, TrainingConfig
from textgen.terminal import bytes_in_words, counted, seconds_in_words
from textgen.text.tokens import TokensManifest
from textgen.training.progress import Progress
from textgen.training.state import TrainingState

FIRST_STEPS = 10  # of a process; all but the first of them are timed
PATIENCE_SECONDS = 30.0  # of training, after which fewer steps are enough
FLOAT_BYTES = 4  # whatever the matrices are multiplied in, weights and moments are fp32


class Timer:
    """Times the first steps of this process, except the very first, in which the device warms up."""

    def __init__(self, progress: Progress) -> None:
        self._begun = progress.step, progress.seconds.get("train", 0.0)
        self._warm: tuple[int, float] | None = None  # the step and the seconds after the first one
        self._is_done = False

    def look(self, progress: Progress, is_waited_for: bool) -> float | None:
        """Return the seconds a step, once, when the device has finished (`is_waited_for`) enough steps."""
        step, seconds = progress.step, progress.seconds["train"]
        if self._warm is None:
            self._warm = step, seconds
        elif is_waited_for and not self._is_done:
            taken, is_slow = step - self._begun[0], seconds - self._begun[1] >= PATIENCE_SECONDS
            if taken >= FIRST_STEPS or is_slow:
                self._is_done = True
                return (seconds - self._warm[1]) / (step - self._warm[0])
        return None


def rest_in_words(progress: Progress, step_seconds: float, steps: int, pace: Pace) -> str:
    """Return how many steps are left, and how long they and their validations will take."""
    left = steps - progress.step
    validations = -(-steps // pace.eval_every) - progress.step // pace.eval_every
    seconds = left * step_seconds + validations * progress.seconds.get("validation", 0.0) / max(1, len(progress.curve))
    return f"{counted(left, 'step')} left, about {seconds_in_words(seconds)}"


def state_bytes(state: TrainingState) -> int:
    """Return the size of a saved state: the weights, the best so far, their average, the optimizers' moments."""
    sizes = {parameter: parameter.numel() for parameter in state.model.parameters()}
    copies = 2 if state.averaged is None else 3
    moments = sum(
        sizes[parameter] * (1 if isinstance(optimizer, Muon) else 2)
        for optimizer in state.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    )
    return FLOAT_BYTES * (copies * sum(sizes.values()) + moments)


def disk_bytes(
    state: TrainingState, training: TrainingConfig, pace: Pace, steps: int, tokens: TokensManifest
) -> tuple[int, int]:
    """Return what a training, its evaluation and its version take on the disk at the end, and at most on the way.

    On the way a new state is written before an old one is removed.
    """
    weights = FLOAT_BYTES * sum(parameter.numel() for parameter in state.model.parameters())
    scores = FLOAT_BYTES * sum(split.tokens for name, split in tokens.splits.items() if name != "train")
    kept = min(training.keep_checkpoints, -(-steps // min(pace.eval_every, pace.checkpoint_every)))
    trunk = int(training.schedule == "wsd" and training.final_weight_decay is None)
    at_the_end = (kept + trunk) * state_bytes(state) + 2 * weights + scores
    return at_the_end, at_the_end + state_bytes(state)


def bytes_there(out: Path) -> int:
    """Return the size of what an earlier part of the training has left in its folder."""
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def check_room(folder: Path, needed: int) -> None:
    """Check that the disk of a folder has room for so many bytes.

    Raises:
        StateNotSaved: it has not.
    """
    if (free := shutil.disk_usage(folder).free) < needed:
        raise StateNotSaved(
            f"{folder}: this training needs {bytes_in_words(needed)} for its states and its version, and the disk has "
            f"{bytes_in_words(free)} left; make room, as `textgen clean` can, or lower training.keep_checkpoints"
        )
