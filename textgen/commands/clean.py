"""`textgen clean`: removes what nothing needs, or a document with all that was made of it; asks first."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from textgen.commands.arguments import Commands, add_configuration
from textgen.config import find_config, load_config
from textgen.errors import Failure, InputError
from textgen.files import expand_home
from textgen.terminal import bytes_in_words, columns, counted, say

if TYPE_CHECKING:
    from textgen.retention.disk_space import Item
    from textgen.retention.withdrawal import Withdrawal
    from textgen.storage import Storage

DAYS = 30.0
SHOWN = 10  # of a kind, the largest; and of a document's places


def add_clean(commands: Commands) -> None:
    """Add `clean` to the commands."""
    parser = commands.add_parser(
        "clean", help="remove what nothing needs, or a document and all that was made of it; asks first"
    )
    add_configuration(parser)
    parser.add_argument(
        "--document", type=expand_home, metavar="FILE",
        help="remove the texts that hold this document, and the tokens, trainings and versions that were made of them",
    )  # fmt: skip
    parser.add_argument(
        "--days", type=float, metavar="N",
        help=f"keep what was used in the last N days, if it may be wanted again ({DAYS:g}); always in the last hour",
    )  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="remove it and do not ask")
    parser.add_argument("--json", action="store_true", help="print one JSON document; does not ask either")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from textgen.storage import Storage

    config = load_config(find_config(options.config), options.overrides)
    storage = Storage(config.storage)
    if options.days is not None and (options.document is not None or not options.days >= 0):
        raise InputError(f"--days={options.days:g}: it takes a number from 0, and does not go with --document")
    if options.document is not None:
        from textgen.retention.withdrawal import find_withdrawal

        _withdraw(options, find_withdrawal(options.document, config.data, storage), storage)
    else:
        _clean(options, storage)


def _clean(options: argparse.Namespace, storage: "Storage") -> None:
    from textgen.retention.disk_space import KINDS, find_removable, remove_items

    days = DAYS if options.days is None else options.days
    space = find_removable(storage, days)
    removed, stay = list["Item"](), list[str]()
    if not options.json:
        for line in _table(space.items, KINDS):
            say(line)
        for remark in space.remarks:
            say(f"note: {remark}")
        used = find_removable(storage, 0)
        if used.bytes > space.bytes:
            more = bytes_in_words(used.bytes - space.bytes)
            say(f"{more} more: needed by nothing, but used in the last {days:g} days (--days=0 has them too)")
    if space.items and _agrees(options, f"Remove this, {bytes_in_words(space.bytes)}?"):
        removed, stay = remove_items(storage, space.items, days)
    if options.json:
        found = {"items": _as_json(space.items, removed), "bytes": space.bytes, "notes": [*space.remarks, *stay]}
        say(json.dumps(found, indent=2))
    elif removed:
        for line in stay:
            say(f"note: {line}")
        say(f"removed: {bytes_in_words(sum(item.bytes for item in removed))}")


def _withdraw(options: argparse.Namespace, withdrawal: "Withdrawal", storage: "Storage") -> None:
    from textgen.retention.withdrawal import UNCLEAR, carry_out_withdrawal, running_in_words

    if not options.json:
        for line in _withdrawal_lines(withdrawal, storage.root):
            say(line)
    wanted = options.yes or not options.json
    cannot = wanted and bool(withdrawal.running or withdrawal.unclear)
    question = f"Remove all of this for good, {bytes_in_words(withdrawal.bytes)}?"
    if removed := wanted and bool(withdrawal.items) and not cannot and _agrees(options, question):
        carry_out_withdrawal(withdrawal, storage)
    if options.json:
        found = {
            "places": [place._asdict() for place in withdrawal.places],
            "items": _as_json(withdrawal.items, withdrawal.items if removed else []),
            "bytes": withdrawal.bytes,
            "champions": [one._asdict() for one in withdrawal.champions],
            "unclear": withdrawal.unclear,
            "running": withdrawal.running,
            "notes": withdrawal.remarks,
        }
        say(json.dumps(found, indent=2))
    elif removed:
        say(f"removed: {bytes_in_words(withdrawal.bytes)}")
    if cannot:
        raise Failure(running_in_words(withdrawal.running) if withdrawal.running else UNCLEAR)


def _withdrawal_lines(withdrawal: "Withdrawal", root: str) -> Iterator[str]:
    """Yield where a document is, what goes with it, and what becomes of the champions."""
    from textgen.retention.withdrawal import KINDS

    for place in withdrawal.places[:SHOWN]:
        yield f"{place.split} of {place.raw}: {place.document}"
    if (more := len(withdrawal.places) - SHOWN) > 0:
        yield f"and {counted(more, 'document')} more"
    if not withdrawal.places:
        yield "no text holds it"
    if withdrawal.items:
        yield from _table(withdrawal.items, KINDS, shown=None)
    yield from (one.in_words(root) for one in withdrawal.champions)
    yield from (f"note: {remark}" for remark in withdrawal.remarks)
    yield from (f"note: nothing can go until this is settled: {thing}" for thing in withdrawal.unclear)
    if withdrawal.places:
        yield "note: take the document out of your own files too: the next run reads them again"


def _table(items: "Sequence[Item]", kinds: Mapping[str, str], shown: int | None = SHOWN) -> Iterator[str]:
    """Yield a table of things by kind, the largest of each first."""
    if not items:
        yield "nothing can go"
        return
    rows = [("size", "what", "where")]
    for kind, words in kinds.items():
        ordered = sorted((item for item in items if item.kind == kind), key=lambda item: -item.bytes)
        rows += [(bytes_in_words(item.bytes), words, item.name) for item in ordered[:shown]]
        if rest := ordered[len(ordered[:shown]) :]:
            rows.append((bytes_in_words(sum(item.bytes for item in rest)), words, f"and {len(rest):,} more"))
    rows.append((bytes_in_words(sum(item.bytes for item in items)), "in all", ""))
    yield from columns(rows, right={0})


def _agrees(options: argparse.Namespace, question: str) -> bool:
    """Return whether to go on: by --yes, or as a person at a terminal answers."""
    if options.yes or options.json:
        return bool(options.yes)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("nothing was removed; --yes removes it", file=sys.stderr)
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("nothing was removed", file=sys.stderr)
    return False


def _as_json(items: "Sequence[Item]", removed: "Sequence[Item]") -> list[dict[str, Any]]:
    gone = {item.name for item in removed}
    return [{"kind": one.kind, "name": one.name, "bytes": one.bytes, "removed": one.name in gone} for one in items]
