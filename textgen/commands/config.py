"""`textgen config`: every key of the configuration, with its value and where that came from."""

import argparse
import dataclasses
import json
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby, zip_longest
from pathlib import Path

from textgen.commands.arguments import Commands, add_configuration
from textgen.config import find_config
from textgen.settings import Setting, as_typed, kinds, list_settings
from textgen.terminal import counted, say

WIDEST, NARROWEST = 120, 60  # columns of a terminal that the text is wrapped to
LONGEST_ORIGIN, SHORTEST_VALUE = 20, 12  # columns of these cells
MARK, INDENT, GAP = "* ", "    ", "  "
LIMIT, NO_BREAK = re.compile(" ([<>]=?) "), "\N{NO-BREAK SPACE}"


def add_config(commands: Commands) -> None:
    """Add `config` to the commands."""
    parser = commands.add_parser("config", help="show every key: meaning, bounds, default, value, where it came from")
    add_configuration(parser)
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    settings = list_settings(find_config(options.config), options.overrides)
    if options.json:
        say(json.dumps([dataclasses.asdict(setting) for setting in settings], indent=2))
        return
    columns = shutil.get_terminal_size((100, 24)).columns
    for line, differs in _lines(settings, max(NARROWEST, min(columns, WIDEST))):
        say(line, bold=differs)
    count = sum(setting.differs for setting in settings)
    say(f"{counted(len(settings), 'key')}; {count} differ from their defaults, marked *")


def _lines(settings: Sequence[Setting], width: int) -> Iterator[tuple[str, bool]]:
    """Yield the lines for a terminal, and whether a line has a value that differs from its default."""
    cells = [(setting.key, _value(setting), Path(setting.origin).name) for setting in settings]
    key, value, origin = (max(map(len, column)) for column in zip(*cells, strict=True))
    origin = min(origin, LONGEST_ORIGIN)
    value = min(value, max(SHORTEST_VALUE, width - len(MARK) - key - origin - 2 * len(GAP)))
    for section, of_section in groupby(zip(settings, cells, strict=True), key=lambda pair: pair[0].section):
        about = kinds()[section].__doc__ or ""
        yield from ((line, False) for line in _wrap(f"{section}: {about}" if section else about, width))
        for setting, row in of_section:
            for number, line in enumerate(_aligned(row, (key, value, origin))):
                yield f"{MARK if setting.differs and not number else ' ' * len(MARK)}{line}", setting.differs
            bounds = LIMIT.sub(f"{NO_BREAK}\\1{NO_BREAK}", setting.bounds)
            for line in _wrap(f"{setting.meaning} [{bounds}]", width - len(INDENT)):
                yield f"{INDENT}{line.replace(NO_BREAK, ' ')}", False
        yield "", False


def _aligned(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """Yield the lines of a row whose cells are wrapped to their widths."""
    cells = (_wrap(cell, width) for cell, width in zip(row, widths, strict=True))
    for parts in zip_longest(*cells, fillvalue=""):
        yield GAP.join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False)


def _value(setting: Setting) -> str:
    shown = as_typed(setting.value)
    if setting.stands_for is not None:
        shown = f"{shown}, here {as_typed(setting.stands_for)}"
    return f"{shown} (default {as_typed(setting.default)})" if setting.differs else shown
