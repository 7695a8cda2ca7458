"""A run against another one on the documents that both were scored on, by the gate's own comparison."""

import math
import textwrap
from itertools import islice

from pydantic import BaseModel, ConfigDict

from textgen.config import PublishConfig
from textgen.publishing.gate import Rates, compare, rates
from textgen.publishing.run_record import Record
from textgen.text.corpus import RawManifest, read_unit_parts
from textgen.text.documents import by_document
from textgen.text.report import DocumentList

MOVED = 5  # documents that are named, of those that became better and of those that became worse
BEGINNING = 60  # characters of a document, by which a reader knows it,
BEGINNING_PARTS = 3  # and its parts, as rows, in which they are looked for


class Moved(BaseModel):
    """A document that one run scores otherwise than the first: below zero is better."""

    model_config = ConfigDict(frozen=True)

    document: str
    begins: str  # its first words; empty where its text is gone
    difference: float  # in the unit of the comparison
    first: float
    other: float


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
    better: list[Moved] = []
    worse: list[Moved] = []

    @property
    def is_sure(self) -> bool:
        """Whether both bounds are on one side of zero."""
        return (self.low is not None and self.low > 0) or (self.high is not None and self.high < 0)


def pair(first: Record, other: Record, split: str) -> Paired | None:
    """Return the gate's comparison of two runs on a split; None where they were not scored alike."""
    ours, theirs = other.scores(), first.scores()
    if ours is None or theirs is None or not first.same_text(other, split):
        return None
    assert first.metrics is not None and other.metrics is not None
    if first.metrics.protocol != other.metrics.protocol:
        return None
    found = rates(ours, theirs, split)
    if found is None or not len(found.weight_D):
        return None
    confidence = PublishConfig().confidence
    bounds = compare(found, 0.0, confidence)
    total = found.weight_D.sum()
    better, worse = _moved(found, other.raw, split)
    return Paired(
        unit=found.unit,
        documents=len(found.weight_D),
        first=(found.opponent_D.sum() / total).item(),
        other=(found.challenger_D.sum() / total).item(),
        difference=found.difference,
        low=_finite(bounds.low),
        high=_finite(bounds.high),
        bound_confidence=confidence,
        better=better,
        worse=worse,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _moved(found: Rates, raw: RawManifest | None, split: str) -> tuple[list[Moved], list[Moved]]:
    """Return the documents that became better by most, and those that became worse by most."""
    scored_D = found.weight_D.nonzero().flatten()
    weight_D = found.weight_D[scored_D].double()
    first_D, other_D = found.opponent_D[scored_D] / weight_D, found.challenger_D[scored_D] / weight_D
    order = (other_D - first_D).argsort(stable=True).tolist()
    chosen = {int(scored_D[place]): place for place in [*order[:MOVED], *order[-MOVED:]]}
    beginnings: dict[int, str] = {}
    if raw is not None:
        for number, texts in enumerate(by_document(read_unit_parts(raw, split))):
            if number in chosen:
                beginnings[number] = textwrap.shorten(
                    "".join(islice(texts, BEGINNING_PARTS)), BEGINNING, placeholder=" …"
                )
    names = None if raw is None else DocumentList(raw, split)
    moved = [
        Moved(
            document=f"document {number + 1} of {split}" if names is None else names.name(number),
            begins=beginnings.get(number, ""),
            difference=float(other_D[place] - first_D[place]),
            first=float(first_D[place]),
            other=float(other_D[place]),
        )
        for number, place in chosen.items()
    ]
    return (
        [one for one in moved if one.difference < 0][:MOVED],
        [one for one in reversed(moved) if one.difference > 0][:MOVED],
    )
