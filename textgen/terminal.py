"""Text of somebody else's on its way to a terminal: no character of it acts, and a long value is shortened."""

import logging
import os
import reprlib
import sys
import unicodedata
from collections.abc import Container, Iterator, Sequence
from typing import Any, TextIO

LONGEST_VALUE = 100  # characters of a value in a message
UNITS = ("kB", "MB", "GB", "TB", "PB")
NUMBER_BITS = 256  # of an integer that is written out
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"
# They reorder the text around them: the embeddings, overrides and isolates of UAX #9, its marks, U+061C.
DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
ACTS = frozenset({"Cc", "Cs", "Zl", "Zp"})  # Unicode's controls, lone surrogates, line and paragraph separators


def printable(text: str) -> str:
    """Return `text` with every character that would act in a terminal as its escape, but for line ends and tabs."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(character) if _acts(character) else character for character in text)


def is_terminal(stream: TextIO) -> bool:
    """Return whether a stream is a terminal on which the cursor can go back, as TERM=dumb says that it cannot."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def say(text: str, bold: bool = False) -> None:
    """Print a result on stdout: on a terminal no character of it acts, a pipe has it as it is, and not bold."""
    if sys.stdout.isatty():
        has_bold = bold and is_terminal(sys.stdout) and not os.environ.get("NO_COLOR")
        text = f"{BOLD}{printable(text)}{PLAIN}" if has_bold else printable(text)
    print(text)


class PlainFormatter(logging.Formatter):
    """Formats a record for a terminal: no character of it acts."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _Brief(reprlib.Repr):
    """Writes values as `repr` does, but shortened, in time that does not grow with the value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, LONGEST_VALUE, LONGEST_VALUE

    def repr_int(self, value: int, level: int) -> str:
        if value.bit_length() > NUMBER_BITS:  # Python itself refuses to write thousands of digits
            return f"an integer of {value.bit_length():,} bits"
        return repr(value)


def brief(value: Any) -> str:
    """Return `repr(value)`, shortened: what a message shows of a value."""
    return shorten(_Brief().repr(value))


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, as `1 word` and `1,200 words`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def bytes_in_words(size: int) -> str:
    """Return a size as `812 bytes`, `3.4 MB` and `120 GB`, in powers of a thousand."""
    amount, unit = float(size), 0
    while unit < len(UNITS) and amount >= 999.5:
        amount, unit = amount / 1000, unit + 1
    if not unit:
        return counted(size, "byte")
    return f"{amount:.1f} {UNITS[unit - 1]}" if amount < 9.95 else f"{amount:.0f} {UNITS[unit - 1]}"


def seconds_in_words(seconds: float) -> str:
    """Return a time as `0.4 seconds`, `40 seconds`, `2.5 minutes` and `31 hours`."""
    amount, unit = seconds, "second"
    for longer in ("minute", "hour"):
        if amount >= 99.5:
            amount, unit = amount / 60, longer
    return f"{amount:.1f} {unit}s" if amount < 9.95 else counted(round(amount), unit)


def one_line(text: object) -> str:
    """Return a message of somebody else's in one line, shortened."""
    return printable(shorten(" ".join(str(text).split()), 3 * LONGEST_VALUE))


def shorten(text: str, longest: int = 2 * LONGEST_VALUE) -> str:
    """Return the beginning of a text that is too long."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def columns(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> Iterator[str]:
    """Yield the lines of a table whose columns are aligned, those numbered in `right` at their right ends."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = []
        for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - _width(cell))
            cells.append(space + cell if number in right else cell + space)
        yield "  ".join(cells).rstrip()


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes: an ideograph takes two, an accent of its own none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def _acts(character: str) -> bool:
    if character in "\n\t":
        return False
    return character in DIRECTIONS or unicodedata.category(character) in ACTS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
