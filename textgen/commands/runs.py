"""`textgen runs`: the trainings of a root, and several of them side by side."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from textgen.commands.arguments import ROOT_HELP, Commands
from textgen.config import StorageConfig
from textgen.errors import InputError
from textgen.files import expand_home
from textgen.terminal import columns, say

if TYPE_CHECKING:
    from textgen.publishing.runs import Row, Run

RUN_HELP = "NAME@v3, v3, champion, a training's folder or key, or the id of a flow run"
SHOWN_CHANGES = 4  # of a run in the list


def add_runs(commands: Commands) -> None:
    """Add `runs` and its commands to the commands."""
    parser = commands.add_parser("runs", help="trainings: list them, or compare some side by side")
    of_runs = parser.add_subparsers(required=True, metavar="command")
    listing = of_runs.add_parser("list", help="every training, its text, what changed, and its losses")
    comparing = of_runs.add_parser("compare", help="what differs, figures with intervals, curves, samples")
    comparing.add_argument("runs", nargs="+", metavar="RUN", help=RUN_HELP)
    comparing.add_argument("--all", action="store_true", help="show what is alike too")
    comparing.add_argument("--name", default="textgen", help="the model that v3 and champion are of")
    comparing.add_argument(
        "--html", type=expand_home, metavar="FILE", help="write a page with the plots; it needs no network"
    )
    printed = comparing.add_mutually_exclusive_group()
    printed.add_argument("--json", action="store_true", help="print one JSON document")
    printed.add_argument("--md", action="store_true", help="print Markdown")
    listing.add_argument("--json", action="store_true", help="print one JSON document")
    for command, run in ((listing, _list), (comparing, _compare)):
        command.add_argument("--root", default=StorageConfig().root, help=ROOT_HELP)
        command.set_defaults(run=run)


def _list(options: argparse.Namespace) -> None:
    from textgen.publishing.runs import list_runs
    from textgen.storage import Storage

    rows = list_runs(Storage.at(options.root))
    if options.json:
        say(json.dumps([{**asdict(row), "when": row.when.isoformat()} for row in rows], indent=2))
        return
    if not rows:
        raise InputError(f"{options.root}: there is no training")
    for line in columns([("run", "when", "text", "steps", "validation", "test", "changed"), *map(_cells, rows)]):
        say(line)
    say("Losses are in nats a token; those of another text, tokenizer or protocol do not compare.")
    if not all(row.evaluated for row in rows):
        say("~ best on validation while training: the run was not evaluated.")


def _cells(row: "Row") -> tuple[str, ...]:
    changes = ", ".join(row.changes[:SHOWN_CHANGES]) + f" and {len(row.changes) - SHOWN_CHANGES} more" * (
        len(row.changes) > SHOWN_CHANGES
    )
    validation = "-" if row.validation is None else f"{'' if row.evaluated else '~'}{row.validation:.3f}"
    return (
        f"{row.name}{' (champion)' if row.champion else ''}",
        f"{row.when.astimezone():%Y-%m-%d %H:%M}",
        row.text,
        "-" if row.steps is None else f"{row.steps:,}",
        validation,
        "-" if row.test is None else f"{row.test:.3f}",
        changes,
    )


def _check_different(names: Sequence[str], runs: "Sequence[Run]") -> None:
    """Check that no two names are of the same run.

    Raises:
        InputError: two are.
    """
    seen: dict[Path, str] = {}
    for name, run in zip(names, runs, strict=True):
        folder = run.version or run.training
        assert folder is not None
        if (place := folder.resolve()) in seen:
            raise InputError(f"{seen[place]} and {name} are the same run, {run.name}; name another")
        seen[place] = name


def _compare(options: argparse.Namespace) -> None:
    from textgen.comparison.compare import compare_runs
    from textgen.comparison.page import write_page
    from textgen.comparison.words import in_markdown, in_terminal
    from textgen.publishing.runs import find_run
    from textgen.storage import Storage

    if len(options.runs) < 2:
        raise InputError(f"{options.runs[0]}: one run is not compared with itself; name another")
    if options.html is not None and options.html.is_dir():
        raise InputError(f"--html {options.html}: it is a folder; name a file")
    storage = Storage.at(options.root)
    found = [find_run(name, storage, options.name) for name in options.runs]
    _check_different(options.runs, found)
    comparison = compare_runs(found, storage)
    if options.html is not None:
        write_page(comparison, options.html)
    if options.json:
        say(comparison.model_dump_json(indent=2))
    elif options.md:
        say(in_markdown(comparison, options.all))
    else:
        for line in in_terminal(comparison, options.all):
            say(line)
        if options.html is not None:
            say(f"\nPlots: {options.html}")
