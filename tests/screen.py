"""What stands on a terminal after a program wrote to it: carriage returns go back, bold is marked."""

import fcntl
import os
import re
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress

ROWS, COLUMNS = 30, 100
PART = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n])", re.DOTALL)
Cell = tuple[str, bool]  # a character, and whether it is bold


@contextmanager
def open_terminal(columns: int = COLUMNS) -> Iterator[tuple[int, int]]:
    """Yield the two ends of a terminal: the one that is read, and the one that a program has, which it closes."""
    read, program = os.openpty()
    fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    try:
        yield read, program
    finally:
        os.close(read)


def read_terminal(end: int) -> str:
    """Return all that is written on a terminal, until every program has closed it."""
    written = b""
    with suppress(OSError):  # Linux's end of a terminal
        while read := os.read(end, 1 << 16):
            written += read
    return written.decode()


def lines_on_screen(written: str) -> list[list[Cell]]:
    """Return the lines of a terminal that is as high as it has to be.

    It knows what our commands write: a carriage return, a line end, bold and plain, the erasing of the rest of a line.
    All else is an error.
    """
    lines: list[list[Cell]] = [[]]
    column, bold, end = 0, False, 0
    for found in PART.finditer(written):
        assert found.start() == end, f"an unknown sequence: {written[end : end + 20]!r}"
        end = found.end()
        argument, command, control, character = found.groups()
        if control == "\n":
            lines.append([])
        if control:
            column = 0
        elif command == "m":
            bold = argument == "1"
        elif command == "K":
            del lines[-1][column:]
        elif command:
            raise AssertionError(f"an unknown sequence: {found[0]!r}")
        else:
            gap = [(" ", False)] * (column - len(lines[-1]))
            lines[-1][column:] = [*gap, (character, bold), *lines[-1][column + 1 :]]
            column += 1
    assert end == len(written), f"an unknown sequence: {written[end : end + 20]!r}"
    return lines


def text_on_screen(written: str) -> list[str]:
    """Return the text of the lines of a terminal, without what is blank at their ends."""
    return ["".join(character for character, _ in line).rstrip() for line in lines_on_screen(written)]
