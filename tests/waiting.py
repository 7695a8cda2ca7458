"""Waiting in tests: for conditions, with room for a slow machine, and trainings that wait for their test.

Environment variables try the tests as another machine would run them: TEXTGEN_TEST_POLLS=0.1 has them look ten times as
often, TEXTGEN_TEST_SLOWDOWN=10 makes each training step ten times as long, TEXTGEN_TEST_SIZE=0.25 narrows the models.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tests.pace.sitecustomize import HOLD_FILE

PATIENCE_SECONDS = 600.0  # a slow machine is no failure
POLL_SECONDS = 0.02
POLLS = float(os.environ.get("TEXTGEN_TEST_POLLS", "1"))
SIZE = float(os.environ.get("TEXTGEN_TEST_SIZE", "1"))

T = TypeVar("T")


def until(ask: Callable[[], T], what: str, poll_seconds: float = POLL_SECONDS) -> T:
    """Return the first true value of `ask()`, asked again and again."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (value := ask()):
        assert time.monotonic() < deadline, f"not in {PATIENCE_SECONDS:g} s: {what}"
        time.sleep(poll_seconds * POLLS)
    return value


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep the trainings whose folders are in `folder` from taking their last step while the block runs.

    A signal ends a training that waits so, as it ends any other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / HOLD_FILE).touch()
    try:
        yield
    finally:
        (folder / HOLD_FILE).unlink()


def narrow(width: int) -> int:
    """Return the width of a layer in a test's model: a multiple of 8."""
    return max(8, int(width * SIZE) // 8 * 8)
