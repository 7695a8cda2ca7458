"""What a finished training leaves: the weights that were best on validation, and how they came about."""

from typing import Any, Literal

from textgen.files import Manifest
from textgen.model.pretrained import WEIGHTS_FILE
from textgen.training.environment import Environment
from textgen.training.meters import Speed
from textgen.training.progress import Validation


class CheckpointManifest(Manifest):
    """A finished training: the weights that were best on validation, and how they came about."""

    NAMES = ("key", "tokens_key")

    tokens_key: str
    config: dict[str, Any]
    initial_sha256: str | None  # of the weights that it started from, None where they were drawn
    device: str  # as its maker names it
    devices: int
    precision: Literal["fp32", "bf16"] | None = None  # None of a training from before it was recorded
    environment: Environment | None = None  # as `precision`
    parameters: int
    steps: int
    stopped_early: bool
    bad_steps: int
    best_step: int
    tokens_trained: int
    train_seconds: float  # all phases
    speed: Speed
    curve: list[Validation]
    sha256: dict[str, str]

    def sha256_by_file(self) -> dict[str, str]:
        return self.sha256

    @property
    def weights_sha256(self) -> str:
        return self.sha256[WEIGHTS_FILE]
