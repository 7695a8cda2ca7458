"""The curves of a training: its loss at each logged step, over the tokens and over the seconds until then."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from textgen.publishing.runs import Training
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.figures import read_log

SMOOTHED_SHARE = 0.06  # of the points, on each side of a point, that its mean is over


class Point(NamedTuple):
    """A loss on the way."""

    tokens: float
    seconds: float  # of all phases
    loss: float


class Curve(BaseModel):
    """The losses of one training on train and on validation."""

    model_config = ConfigDict(frozen=True)

    train: list[Point]
    validation: list[Point]

    def scaled(self, train: float, validation: float) -> "Curve":
        """Return the curve with the losses of each split times a factor."""
        return Curve(
            train=[point._replace(loss=point.loss * train) for point in self.train],
            validation=[point._replace(loss=point.loss * validation) for point in self.validation],
        )


def read_curve(folder: Path, training: Training | CheckpointManifest) -> Curve:
    """Return the curve of a training by its log; without one, by the validations that its manifest has."""
    lines = read_log(folder)
    tokens_per_step = training.tokens_trained / max(1, training.steps)
    steps, seconds = [0.0], [0.0]
    for line in lines:
        if phases := [value for name, value in line.items() if name.startswith("seconds/")]:
            steps.append(line["step"])
            seconds.append(sum(phases))
    if len(steps) == 1:
        steps, seconds = [0.0, training.steps], [0.0, training.train_seconds]

    def point(step: float, loss: float) -> Point:
        return Point(step * tokens_per_step, float(np.interp(step, steps, seconds)), loss)

    return Curve(
        train=_points(lines, "train/loss_nats", point)
        or [point(one.step, one.train_loss_nats) for one in training.curve if one.train_loss_nats is not None],
        validation=[point(one.step, one.loss_nats) for one in training.curve],
    )


def _points(lines: Sequence[dict[str, float]], name: str, point: Any) -> list[Point]:
    return [point(line["step"], line[name]) for line in lines if name in line]


def smooth(points: Sequence[Point]) -> list[Point]:
    """Return a line through the points: each loss is the mean of as many on both sides, fewer towards the ends."""
    losses, reach = [point.loss for point in points], round(SMOOTHED_SHARE * len(points))
    line = []
    for number, point in enumerate(points):
        near = min(reach, number, len(points) - 1 - number)
        line.append(point._replace(loss=float(np.mean(losses[number - near : number + near + 1]))))
    return line


def losses_at(points: Sequence[Point], places: Sequence[float], axis: Literal["tokens", "seconds"]) -> list[float]:
    """Return the losses at places along an axis, between two points by their distance."""
    return list(map(float, np.interp(places, [getattr(point, axis) for point in points], [one.loss for one in points])))
