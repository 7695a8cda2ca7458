"""The progress of a piece of work: one bar on a terminal; elsewhere a line of the log every half minute."""

import logging
import os
import sys
import time
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm

from textgen.terminal import PlainFormatter, bytes_in_words, counted, is_terminal, seconds_in_words

log = logging.getLogger(__name__)

LINE_SECONDS = 30.0
UNKNOWN_COLUMNS = 80  # of a terminal
BYTE = "B"  # the unit of work that is counted in bytes


class Bar:
    """The progress of a piece of work. On a terminal the bar is removed when the work is done."""

    def __init__(self, label: str, total: int, unit: str, done: int = 0, shown: bool = True) -> None:
        """Begin at `done` of `total` units; `unit` is their name, such as `step`, or BYTE."""
        self.label, self.total, self.unit, self.done, self.words = label, total, unit, done, ""
        self._first, self._started = done, time.monotonic()
        has_bar = shown and is_terminal(sys.stderr)
        has_width = has_bar and os.get_terminal_size(sys.stderr.fileno()).columns > 0  # some terminals do not say
        self._said = self._started if shown and not has_bar else float("inf")
        self._bar = tqdm(
            total=total, initial=done, desc=label, unit=unit, unit_scale=unit == BYTE, leave=False,
            disable=not has_bar, dynamic_ncols=has_width, ncols=None if has_width else UNKNOWN_COLUMNS,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._bar.close()

    def update(self, more: int = 1, words: str | None = None) -> None:
        """Note that `more` units are done, and what else there is to say of the work."""
        self.done += more
        if words is not None:
            self.words = words
            self._bar.set_postfix_str(words, refresh=False)
        self._bar.update(more)
        if (now := time.monotonic()) - self._said >= LINE_SECONDS:
            self._said = now
            log.info("%s", self.in_words())

    def in_words(self) -> str:
        """Return how far the work is, and how long the rest of it will take at the same pace."""
        if self.unit == BYTE:
            parts = [f"{self.label}: {bytes_in_words(self.done)} of {bytes_in_words(self.total)}"]
        else:
            parts = [f"{self.label}: {self.done:,} of {counted(self.total, self.unit)}"]
        if self.words:
            parts.append(self.words)
        if self._first < self.done < self.total:
            seconds = (time.monotonic() - self._started) / (self.done - self._first) * (self.total - self.done)
            parts.append(f"{seconds_in_words(seconds)} left")
        return ", ".join(parts)


class Console(logging.StreamHandler[TextIO]):
    """Writes the log on stderr, above a bar if there is one. No character of it acts on the terminal."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(PlainFormatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)
