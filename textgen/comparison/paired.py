"""A run against another one on the documents that both were scored on, by the gate's own comparison."""

from pydantic import BaseModel, ConfigDict

from textgen.comparison.record import Record
from textgen.config import PublishConfig
from textgen.publishing.contenders import name_moved
from textgen.publishing.gate import compare, finite, most_moved, rates
from textgen.publishing.version import Moved


class Paired(BaseModel):
    """A run against the first one, on the same documents."""

    model_config = ConfigDict(frozen=True)

    unit: str
    documents: int
    first: float  # mean, in `unit`
    other: float
    difference: float  # other less first: below zero is better
    low: float | None  # None where there are too few documents for a bound
    high: float | None
    bound_confidence: float  # of each bound
    moved: list[Moved] = []  # the documents that moved most; the first run is the opponent

    @property
    def is_sure(self) -> bool:
        """Whether both bounds are on one side of zero."""
        return (self.low is not None and self.low > 0) or (self.high is not None and self.high < 0)


def pair(first: Record, other: Record, split: str) -> Paired | None:
    """Return the gate's comparison of two runs on a split; None where they were not scored alike."""
    ours, theirs = other.scores(), first.scores()
    if ours is None or theirs is None or not first.same_text(other, split):
        return None
    if not first.measured_like(other):
        return None
    assert other.metrics is not None
    found = rates(ours, theirs, split)
    if found is None or not len(found.weight_D):
        return None
    confidence = PublishConfig().confidence
    bounds = compare(found, 0.0, confidence)
    total = found.weight_D.sum()
    moved, words_D = most_moved(ours, theirs, split), ours.splits[split].words
    return Paired(
        unit=found.unit,
        documents=len(found.weight_D),
        first=(found.opponent_D.sum() / total).item(),
        other=(found.challenger_D.sum() / total).item(),
        difference=found.difference,
        low=finite(bounds.low),
        high=finite(bounds.high),
        bound_confidence=confidence,
        moved=name_moved(moved, other.raw, split, words_D, other.metrics.protocol),
    )
