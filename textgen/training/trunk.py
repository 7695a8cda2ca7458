"""The state that a training keeps where its decay begins: a longer training goes on from it, to the same bytes.

`trunk.json` in a training folder says which trainings may: those whose settings, but for their length, are the same.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import Field

from textgen.errors import Damaged
from textgen.files import Manifest, remove, set_aside, write_atomic
from textgen.model.pretrained import WEIGHTS_FILE
from textgen.sections import TrainingConfig
from textgen.storage import Storage
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.figures import LOG_FILE, figures_until
from textgen.training.folder import KEY_FILE, STATES, TRUNK_FILE, TRUNK_FOLDER, bring_origin
from textgen.training.optim import decay_start
from textgen.training.state import (
    StateManifest,
    TrainingState,
    saved_states,
    write_state,
)

log = logging.getLogger(__name__)

LENGTH = ("max_steps", "epochs", "decay_fraction")  # settings that do not matter before the decay
FINAL_WEIGHT_DECAY = "training.final_weight_decay moves over the whole length"
INHERITED = ("warmup_steps", "eval_every", "eval_blocks")  # null in a longer training: taken from the trunk


class Trunk(Manifest):
    """The record of a kept state. The files of the state are in the state's own manifest."""

    FILE = TRUNK_FILE

    key: str  # that of every training that may go on from it
    step: int = Field(ge=1)
    warmup_steps: int
    eval_every: int
    eval_blocks: int | None
    optimizer: str

    def sha256_by_file(self) -> dict[str, str]:
        return {}

    @property
    def state(self) -> Path:
        """The folder of the state."""
        return self.folder / TRUNK_FOLDER / f"step-{self.step:08d}"

    def inherited(self) -> dict[str, int | None]:
        """Return the settings that a longer training takes over where it has none."""
        return {name: getattr(self, name) for name in INHERITED}

    def fits(self, key: str, training: TrainingConfig, steps: int) -> bool:
        """Return whether a training of so many steps passes through the state before its decay."""
        if self.key != key or self.set_otherwise(training):
            return False
        return self.step <= decay_start(steps, training.model_copy(update=self.inherited()))

    def set_otherwise(self, training: TrainingConfig) -> list[str]:
        """Return the names of the settings that it would take over and that are set to something else."""
        return [name for name, value in self.inherited().items() if getattr(training, name) not in (None, value)]


def trunk_step(training: TrainingConfig, steps: int) -> int | None:
    """Return the step whose state a training keeps, None of one that cannot be made longer."""
    if training.schedule != "wsd" or training.final_weight_decay is not None:
        return None
    return decay_start(steps, training) or None


def find_trunk(home: Path, fits: Callable[[Trunk], bool]) -> Trunk | None:
    """Return the record of the furthest state in the trainings of `home` that fits; damaged records are set aside."""
    found = []
    for file in sorted(home.glob(f"*/{Trunk.FILE}")):
        try:
            found.append(Trunk.parse(file.parent))
        except Damaged as damage:
            with suppress(FileNotFoundError):  # another process did it
                set_aside(file, damage)
    return max(filter(fits, found), key=lambda trunk: trunk.step, default=None)


def find_trunk_state(home: Path, fits: Callable[[Trunk], bool]) -> StateManifest | None:
    """Return the furthest state in the trainings of `home` that fits and verifies; damaged ones are set aside."""
    while (trunk := find_trunk(home, fits)) is not None:
        if (state := read_trunk(trunk)) is not None:
            return state
    return None


def read_trunk(trunk: Trunk) -> StateManifest | None:
    """Return the state of a trunk if it verifies; else it and its record are set aside."""
    try:
        state = StateManifest.read(trunk.state)
        if state.key != trunk.key or state.progress.step != trunk.step:
            raise Damaged(f"{trunk.state} is not what {trunk.folder / Trunk.FILE} says")
        return state
    except Damaged as damage:
        for path in (trunk.folder / Trunk.FILE, trunk.state):
            if path.exists():
                set_aside(path, damage)
    return None


def keep_trunk(out: Path, key: str, training: TrainingConfig, state: TrainingState) -> None:
    """Keep a state, with the figures up to it, in place of one that was kept in `out` before.

    Raises:
        StateNotSaved: the disk is full, or failed otherwise.
    """
    step = state.progress.step
    settings = {name: getattr(training, name) for name in (*INHERITED, "optimizer")}
    trunk = Trunk(path=str(out), key=key, step=step, **settings)
    if not trunk.state.exists():
        write_state(out, trunk.state, key, state, figures_until(out, step))
    trunk.write(out)
    for folder in trunk.state.parent.glob(STATES):
        if folder != trunk.state:
            remove(folder)


def make_way(out: Path, key: str, fits: Callable[[Trunk], bool]) -> None:
    """Where `out` holds another training than that of `key`, and a trunk that fits, remove all but the trunk."""
    if not (out / Trunk.FILE).exists() or (out / KEY_FILE).read_text().strip() == key:
        return
    trunk = find_trunk(out.parent, lambda trunk: trunk.folder == out and fits(trunk))
    if trunk is None or read_trunk(trunk) is None:
        return
    log.info("%s: the training there is made longer; what came after its step %d is replaced", out, trunk.step)
    for name in (CheckpointManifest.FILE, WEIGHTS_FILE, LOG_FILE):
        (out / name).unlink(missing_ok=True)
    for folder in saved_states(out):
        remove(folder)
    write_atomic(out / KEY_FILE, key + "\n")


def outlook(training: TrainingConfig, step: int, kept: int | None, seconds: float) -> str:
    """Return in a line what a longer training would start from, after one that ended at `step`."""
    if training.schedule == "cosine":
        return (
            f"more steps would start from zero: these {step:,} took {seconds:,.0f} seconds, and a cosine is of one "
            "length; with training.schedule=wsd they would go on from where the decay begins"
        )
    if kept is not None and step >= kept:
        return f"the same command with more steps goes on from step {kept:,}, where the decay began"
    if training.final_weight_decay is not None:
        return f"more steps would start from zero: {FINAL_WEIGHT_DECAY}"
    return f"more steps would start from zero: it ended at step {step:,}, before its decay"


def bring_trunks(storage: Storage) -> None:
    """Have the records of all trunks in the remote root here, but for those that were set aside.

    Raises:
        StorageUnavailable: the remote root did not answer.
    """
    for folder in storage.folders(storage.training(), "*", file=Trunk.FILE):
        if not list(folder.glob(f"{Trunk.FILE}*")):
            bring_origin(storage, folder)
            storage.bring_file(folder / Trunk.FILE)
