"""The figures of a training, a JSON line each: no gap and no repeat, however often it was interrupted."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from textgen.errors import Damaged
from textgen.files import set_aside, write_atomic
from textgen.training.meters import Throughput, memory_peak_bytes
from textgen.training.progress import Progress

LOG_FILE = "log.jsonl"

OnMetrics = Callable[[int, dict[str, float]], None]


def step_figures(
    progress: Progress, learning_rate: float, throughput: Throughput, tokens_per_second: float, device: torch.device
) -> dict[str, float]:
    """Return the figures of the steps since the last log; one that was not measured is left out."""
    figures = {
        "train/loss_nats": progress.since_log.mean,
        "train/grad_norm": progress.grad_norm,
        "train/learning_rate": learning_rate,
        "train/tokens": progress.step * throughput.tokens_per_step,
        "train/tokens_per_second": tokens_per_second,
        "train/mfu": throughput.mfu(tokens_per_second),
        "train/bad_steps": progress.bad_steps,
        "train/memory_peak_bytes": memory_peak_bytes(device),
        **{f"seconds/{phase}": total for phase, total in progress.seconds.items()},
    }
    return {name: float(figure) for name, figure in figures.items() if figure is not None}


class TrainingLog:
    """The log of the training in folder `out`.

    A continued training repeats steps that are already logged. Only new lines are written and passed to `on_line`.
    """

    def __init__(self, out: Path, on_line: OnMetrics) -> None:
        self.path, self.on_line = out / LOG_FILE, on_line
        read = list(map(_parse, _read_lines(out)))
        lines = [figures for figures in read if figures is not None]
        if None in read[:-1]:
            set_aside(self.path, Damaged(f"{self.path} has damaged lines"))
        write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in lines))
        self.last = max((_place(int(line["step"]), line) for line in lines), default=(-1, False))

    def add(self, step: int, figures: dict[str, float]) -> None:
        """Write the figures of a step and hand them on, if they are new."""
        if (place := _place(step, figures)) <= self.last:
            return
        self.last = place
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")
        self.on_line(step, figures)

    def take_over(self, folder: Path) -> None:
        """Add the figures of another training, which this one goes on from; a state of its own has none."""
        for line in read_log(folder):
            self.add(int(line.pop("step")), line)


def read_log(out: Path, first: int = 0) -> list[dict[str, float]]:
    """Return the lines of a training's log from line `first` on; one that was cut off or is damaged is left out."""
    return [figures for line in _read_lines(out)[first:] if (figures := _parse(line)) is not None]


def figures_until(out: Path, step: int) -> str:
    """Return the lines of a training's log up to the training, not the validation, of `step`."""
    lines = [line for line in read_log(out) if _place(int(line["step"]), line) <= (step, False)]
    return "".join(json.dumps(line) + "\n" for line in lines)


def _read_lines(out: Path) -> list[str]:
    path = out / LOG_FILE
    return path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []


def _parse(line: str) -> dict[str, float] | None:
    """Return what a line of the log says, None of one that is cut off or damaged."""
    try:
        figures = json.loads(line)
    except ValueError:
        return None
    return figures if isinstance(figures, dict) and isinstance(figures.get("step"), int) else None


def _place(step: int, figures: dict[str, float]) -> tuple[int, bool]:
    """Return where a line comes in the log: a step is validated after it is taken."""
    return step, "validation/loss_nats" in figures
