"""The pace of a training in a test: it waits before its last step for the test, and may be made slower.

Python runs this file when it starts with this folder in PYTHONPATH, as every process does that a test starts.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

HOLD_FILE = "hold"  # beside a training's folder: while it is there, the training does not take its last step
POLL_SECONDS = 0.02 * float(os.environ.get("TEXTGEN_TEST_POLLS", "1"))
SLOWDOWN = float(os.environ.get("TEXTGEN_TEST_SLOWDOWN", "1"))  # how many times as long a step takes


def set_pace(training: ModuleType) -> None:
    """Have the trainings of the module `training` wait where they are held, and take longer over each step."""
    step: Callable[[Any], None] = training.Run.step

    def paced(run: Any) -> None:
        hold = run.out.with_name(HOLD_FILE)
        while run.progress.step == run.steps - 1 and hold.exists() and not must_leave(run):
            time.sleep(POLL_SECONDS)
        started = time.monotonic()
        step(run)
        time.sleep((time.monotonic() - started) * (SLOWDOWN - 1))

    training.Run.step = paced


def must_leave(run: Any) -> bool:
    """Return whether a signal is pending, which the step then hears, or the process that started this one is gone."""
    return run.signals.pending is not None or run.group.is_orphaned


class Finder(importlib.abc.MetaPathFinder):
    """Calls `set_pace` when textgen.training.train is imported, and imports nothing itself."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "textgen.training.train":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_set(module: ModuleType) -> None:
            execute(module)
            set_pace(module)

        spec.loader.exec_module = execute_and_set  # type: ignore[method-assign]
        return spec


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, Finder())
