"""How far a training has come: its step, its losses, its validations."""

from pydantic import BaseModel, ConfigDict


class Validation(BaseModel):
    """One validation while training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    tokens: int  # trained on so far
    train_loss_nats: float | None  # mean since the validation before; None without a sound step
    loss_nats: float


class Sum(BaseModel):
    """A running sum of losses in nats, to take the mean of."""

    model_config = ConfigDict(extra="forbid")

    nats: float = 0.0
    count: int = 0

    def add(self, nats: float) -> None:
        self.nats += nats
        self.count += 1

    @property
    def mean(self) -> float | None:
        """Return the mean in nats, None of nothing."""
        return self.nats / self.count if self.count else None


class Progress(BaseModel):
    """How far a training has come; with the weights and the optimizers, all that the next step depends on.

    The learning rate, the place in the data and the seed of each step follow from `step`, and so does what early
    stopping knows from `curve`.
    """

    model_config = ConfigDict(extra="forbid")

    step: int = 0
    seconds: dict[str, float] = {}  # by phase
    joules: dict[str, float] = {}  # by part of the host, where they can be read
    since_validation: Sum = Sum()
    since_log: Sum = Sum()
    grad_norm: float | None = None  # of the last sound step since the log
    bad_steps: int = 0
    bad_steps_in_a_row: int = 0
    curve: list[Validation] = []

    @property
    def last_validated(self) -> int:
        """Return the step of the last validation, -1 before the first."""
        return self.curve[-1].step if self.curve else -1

    @property
    def best(self) -> Validation:
        """Return the validation with the lowest loss, the earliest of equals."""
        return min(self.curve, key=lambda validation: validation.loss_nats)

    def should_stop_early(self, patience: int | None) -> bool:
        """Return whether there were `patience` validations after the best one; with None there never are."""
        return (
            patience is not None and bool(self.curve) and len(self.curve) - 1 - self.curve.index(self.best) >= patience
        )
