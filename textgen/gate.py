"""The gate: whether a challenger takes the champion's place, by numbers that the decision keeps."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Guard(BaseModel):
    """What a model must hold whatever it is compared with: `value` on the right side of `bound`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    passed: bool
    value: float | None  # None where it is no finite number, or there was nothing to measure
    bound: float


class Decision(BaseModel):
    """Whether a version was promoted, why, and the comparison that said so.

    The figures of the comparison are null where none was made: under `publish.policy` always and never.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    promoted: bool
    reason: str
    opponent: str | None = None  # the champion's version, or `unigram`, which the first model has to beat
    protocol: str | None = None
    unit: Literal["nats a token", "bits a byte"] | None = None
    documents: int | None = None  # of the test split, that were compared
    challenger: float | None = None  # mean loss on the test split, in `unit`
    champion: float | None = None  # the opponent's
    difference: float | None = None  # challenger less opponent: below zero is better
    low: float | None = None  # of the difference's confidence interval, two-sided, at `required_confidence`
    high: float | None = None
    confidence: float | None = None  # that the challenger is better by more than `min_improvement`
    min_improvement: float | None = None  # in `unit`
    required_confidence: float | None = None
    guards: list[Guard] = []
