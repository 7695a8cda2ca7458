"""Signals that wait for a place where a training can be left: a step is never cut in two."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)

DEFERRED = (signal.SIGINT, signal.SIGTERM)


def in_main_thread() -> bool:
    """Return whether this is the thread that Python's signal handlers run in."""
    return threading.current_thread() is threading.main_thread()


class DeferredSignals:
    """A context in which SIGINT and SIGTERM are noted; `deliver` then hands them to whoever handled them before.

    A second one does not wait. Outside the main thread, where Python handles no signals, nothing is deferred.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._previous: dict[int, Any] = {}  # handlers, as `signal` takes and gives them

    def __enter__(self) -> Self:
        if in_main_thread():
            for number in DEFERRED:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # ignored, or not Python's to give back
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if self.pending is not None:  # also after an error: what failed is not to be tried again
                if error is not None and not isinstance(error, KeyboardInterrupt):  # which nobody else will tell
                    log.error("%s: %s", type(error).__name__, error)
                self.deliver()
        finally:
            self._restore()

    def deliver(self) -> None:
        """Let the pending signal do now what it would have done."""
        assert self.pending is not None
        self._restore()
        pending, self.pending = self.pending, None
        signal.raise_signal(pending)

    def end_if_pending(self) -> None:
        """Let a signal that came have its effect.

        Raises:
            KeyboardInterrupt: its handler returned, and the block ends all the same.
        """
        if self.pending is not None:
            self.deliver()
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pending is not None:
            self.deliver()
        self.pending = number

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
