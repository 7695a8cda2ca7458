"""Markdown of foreign text: no character of it is markup or control."""

import re
from collections.abc import Sequence

MARKUP = re.compile(r"([\\`*_<>#\[\]|~&])")
# Of a list, a rule or a heading, where a line begins.
LINE_MARKUP = re.compile(r"^([ \t]*)(?:([-+](?=\s|$)|-(?=-)|=)|(\d+)([.)])(?=\s|$))", re.MULTILINE)
BARE_PIPE = re.compile(r"(?<!\\)\|")


def visible(text: str) -> str:
    """Return `text` with a replacement character for each one that is not printed, but for line ends."""
    return "".join(character if character.isprintable() or character == "\n" else "�" for character in text)


def quote(text: str) -> str:
    """Return a text as a quotation shows it: no character of it is markup or control."""
    escaped = MARKUP.sub(r"\\\1", visible(text))
    return LINE_MARKUP.sub(_escape_at_line_start, escaped).replace("\n", "\n> ")


def inline(text: str) -> str:
    """Return a text in one line, no character of which is markup or control."""
    return quote(" ".join(text.split()))


def code(text: str) -> str:
    """Return a text as code in a line: its fence is longer than any in the text (CommonMark 0.31, 6.1)."""
    shown = visible(" ".join(text.split()))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{shown}{space}{fence}"


def without_fences(text: str) -> str:
    """Return a text that may stand between backticks: it holds none."""
    return visible(" ".join(text.split())).replace("`", "'")


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, of cells in Markdown."""
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return BARE_PIPE.sub(r"\\|", text.replace("\n", " "))


def _escape_at_line_start(match: re.Match[str]) -> str:
    indent, sign, number, stop = match.groups()
    return f"{indent}\\{sign}" if sign else f"{indent}{number}\\{stop}"
