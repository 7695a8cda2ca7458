"""A thread that looks at something again and again while other work goes on."""

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def every(
    seconds: float, look: Callable[[bool], None], name: str, leave_seconds: float | None = None
) -> Iterator[None]:
    """Call `look(False)` every `seconds` while the block runs, and `look(True)` once when it ends, however it ends.

    `look` runs in a thread called `name`, in the context of the caller. It handles its own errors: one that it raises
    ends the thread. The block waits for the last look, but no longer than `leave_seconds`.
    """
    done, context = threading.Event(), contextvars.copy_context()

    def follow() -> None:
        while not done.wait(seconds):
            look(False)
        look(True)

    thread = threading.Thread(target=context.run, args=(follow,), name=name, daemon=leave_seconds is not None)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(leave_seconds)
