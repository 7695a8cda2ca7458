"""The thread that writes the W&B run of a training, so that no stage waits for W&B or fails with it. No wandb here."""

import contextvars
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tasks.run_page import row_of
from textgen.terminal import one_line

log = logging.getLogger(__name__)

CLOSE_SECONDS = 90.0  # that the end of a record may take
LEAVE_SECONDS = 5.0  # the same, where a person who pressed Ctrl-C waits for it
_warned: set[str] = set()  # what this process has said already


@contextmanager
def forgiving(consequence: str) -> Iterator[None]:
    """Turn any failure of the block into a warning that ends with the consequence, given once."""
    try:
        yield
    except Exception as error:  # the server's, the client's, the disk's, the environment's: the work is what counts
        warn(f"{one_line(error)}; {consequence}")


def warn(message: str) -> None:
    """Log a warning, once a process."""
    if message not in _warned:
        _warned.add(message)
        log.warning("Weights & Biases: %s", message)


class Tracker:
    """The W&B run of a training. It opens with the first figure: a stage that does nothing leaves no run behind.

    `log`, `summarize` and `do` return at once; a thread does the work. After a failure it records nothing more.
    """

    def __init__(
        self, open_run: Callable[[], Any] | None, earlier: Sequence[dict[str, float]] = (), tokens_per_step: int = 0
    ) -> None:
        """Record in the run that `open_run` opens, first the `earlier` lines of the log; None: nothing is recorded."""
        self.url: str | None = None  # of the run on the server
        self.failed = False  # whether the stage that used it last did
        self._open_run, self._earlier, self._tokens_per_step = open_run, earlier, tokens_per_step
        self._run: Any = None
        self._actions = queue.SimpleQueue[Callable[[Any], object] | None]()
        context = contextvars.copy_context()  # by which a warning reaches the log of the flow's run
        self._thread = threading.Thread(target=context.run, args=(self._work,), name="wandb", daemon=True)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Record figures of a training step."""
        self.do(lambda run: self._log(run, step, figures))

    def summarize(self, figures: dict[str, Any]) -> None:
        """Record figures of the whole training; one that is None is not known."""
        known = {name: value for name, value in figures.items() if value is not None}
        self.do(lambda run: run.summary.update(known))

    def do(self, action: Callable[[Any], object]) -> None:
        """Call `action` with the run, in the thread, after the actions before it."""
        if self._open_run is None:
            return
        if not self._thread.ident:
            self._thread.start()
        self._actions.put(action)

    def close(self, interrupted: bool = False) -> None:
        """End the run, if there is one, when all is recorded. Wait some seconds for that at most."""
        if not self._thread.ident:
            return
        self._actions.put(None)
        self._thread.join(seconds := LEAVE_SECONDS if interrupted else CLOSE_SECONDS)
        if self._thread.is_alive():
            warn(f"the record was not complete after {seconds:g} seconds; the run goes on without it")

    def _work(self) -> None:
        with forgiving("the run is not recorded further"):
            for action in iter(self._actions.get, None):
                action(self._opened())
        if self._run is not None:
            with forgiving("the end of the run is not recorded"):
                self._run.finish(exit_code=int(self.failed))

    def _opened(self) -> Any:
        if self._run is None:
            assert self._open_run is not None
            self._run = self._open_run()
            self.url = None if self._run.offline else self._run.url  # wandb warns in the terminal, each time, offline
            for line in self._earlier:
                self._log(self._run, int(line["step"]), line)
        return self._run

    def _log(self, run: Any, step: int, figures: dict[str, float]) -> None:
        """Record a line of the training's log, if the server does not have it: a run takes no step before its last.

        The line of a validation may come after the run was ended at its step. It is then recorded a step later, at
        its own place on the axis of tokens.
        """
        if step + 1 >= run.starting_step:
            run.log(row_of(step, figures, self._tokens_per_step), step=max(step, run.starting_step))
