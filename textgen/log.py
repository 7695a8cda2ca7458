"""The figures of a training, a JSON line each: no gap and no repeat, however often it was interrupted."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

from textgen.files import write_atomic

log = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"

OnMetrics = Callable[[int, dict[str, float]], None]


class TrainingLog:
    """The log of the training in folder `out`.

    A resumed training writes again what came after its state, and only what is new reaches `on_line`.
    """

    def __init__(self, out: Path, on_line: OnMetrics) -> None:
        self.path, self.on_line = out / LOG_FILE, on_line
        self.seen = len(read_log(out))
        self.lines = 0

    def continue_from(self, lines: int) -> None:
        """Cut the log back to the `lines` that it had when the state was saved."""
        kept = read_log(self.path.parent)[:lines]
        if len(kept) < lines:
            log.warning("%s has lost %d of %d lines", self.path, lines - len(kept), lines)
        write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.lines = lines

    def add(self, step: int, figures: dict[str, float]) -> None:
        """Write the figures of a step, and hand them on if they are new."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")
        self.lines += 1
        if self.lines > self.seen:
            self.on_line(step, figures)


def read_log(out: Path) -> list[dict[str, float]]:
    """Return the lines of a training's log; a last one that was cut off is left out."""
    path = out / LOG_FILE
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
