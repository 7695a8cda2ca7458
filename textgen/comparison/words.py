"""A comparison of runs in words: the verdict and the tables that the terminal, Markdown and the page all show."""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from textgen.comparison.compare import Comparison, Paired, Side
from textgen.publishing.curves import losses_at, smooth
from textgen.publishing.markdown import inline, quote, table
from textgen.sections import HELD_OUT
from textgen.terminal import columns, counted

SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the shortest training, at which the losses are written out
ABSENT = "-"
GATE = "The gate"


class Table(NamedTuple):
    """A table with its heading, and what to know when reading it. Its first column may name the group of a row."""

    title: str
    titles: list[str]
    rows: list[list[str]]
    note: str = ""


def title_of(comparison: Comparison) -> str:
    """Return the names of the runs, the first against the others."""
    first, *others = _names(comparison)
    return f"{first} beside {' and '.join(others)}"


def verdicts(comparison: Comparison) -> list[str]:
    """Return what came of the comparison in words: what forbids one first, and what the gate said where it made it."""
    first, *others = comparison.runs
    lines = list(comparison.warnings)
    for other, paired in zip(others, comparison.paired["test"], strict=True):
        if paired is not None:
            lines.append(f"{_verdict(first, other, paired)}.")
        if other.gate is not None:
            lines.append(f"{GATE} compared {other.name} with {first.name} when it was published: {other.gate}.")
    return lines


def _verdict(first: Side, other: Side, paired: Paired) -> str:
    documents = counted(paired.documents, "test document")
    bounds = f"{bounds_of(paired)}, each bound with {paired.bound_confidence:.0%} confidence"
    if not paired.is_sure:
        return (
            f"{other.name} and {first.name} cannot be told apart on {documents}: "
            f"{paired.difference:+.3f} {paired.unit} ({bounds})"
        )
    return (
        f"{other.name} is {'better' if paired.difference < 0 else 'worse'} than {first.name} by "
        f"{abs(paired.difference):.3f} {paired.unit}, {abs(paired.difference) / paired.first:.1%}, on {documents} "
        f"(difference {bounds})"
    )


def bounds_of(paired: Paired) -> str:
    """Return the bounds of a difference in words."""
    low, high = ("no bound" if bound is None else f"{bound:+.3f}" for bound in (paired.low, paired.high))
    return f"{low} to {high}"


def what_differs(comparison: Comparison, everything: bool = False) -> Table:
    """Return what differs between the runs; with `everything`, what is alike too."""
    shown = [one for one in comparison.differences if one.differs or everything]
    rows = [[one.group, one.name, *one.values] for one in shown]
    alike = sum(not one.differs for one in comparison.differences)
    note = "" if everything else f"{counted(alike, 'other setting')} and facts are the same."
    return Table("What differs" if not everything else "All settings", ["", "", *_names(comparison)], rows, note)


def figures(comparison: Comparison) -> Table:
    """Return the figures of the runs, with the intervals of what was compared."""
    rows = []
    for split in reversed(HELD_OUT):  # what the gate decides by is first
        for name, words, form, unit in (
            ("loss_nats", "loss, nats a token", ".3f", "nats a token"),
            ("bits_per_byte", "bits a byte", ".3f", "bits a byte"),
            ("token_perplexity", "token perplexity", ",.1f", None),
        ):
            values = [_number(getattr(side.splits.get(split), name, None), form) for side in comparison.runs]
            for number, paired in enumerate(comparison.paired[split], start=1):
                if paired is not None and paired.unit == unit:
                    values[number] += f" ({paired.difference:+.3f}, {bounds_of(paired)})"
            rows.append([split, words, *values])
    rows = [row for row in rows if set(row[2:]) != {ABSENT}]
    if any(side.promoted is not None for side in comparison.runs):
        rows.append(["gate", "decision", *(_publication(side) for side in comparison.runs)])
    confidence = next((one.bound_confidence for pair in comparison.paired.values() for one in pair if one), None)
    note = "" if confidence is None else (
        f"Beside a loss: the difference from {comparison.runs[0].name} on the same documents (below zero is better), "
        f"and its bounds, each with {confidence:.0%} confidence."
    )  # fmt: skip
    return Table("Figures", ["", "", *_names(comparison)], rows, note)


def costs(comparison: Comparison) -> Table:
    """Return what the trainings took."""
    rows = []
    for name in dict.fromkeys(name for side in comparison.runs for name in side.cost):
        values = [side.cost.get(name) for side in comparison.runs]
        whole = all(value is None or value >= 100 or value == int(value) for value in values)
        form = ".3f" if name.endswith("nats a token") else ",.0f" if whole else ",.1f"
        rows.append([name, *(_number(value, form) for value in values)])
    return Table("Training", ["", *_names(comparison)], rows)


def losses_on_the_way(comparison: Comparison) -> list[Table]:
    """Return the losses on train at the same tokens and seconds, as far as the shortest training goes."""
    lines = {side.name: smooth(side.curve.train) for side in comparison.runs if side.curve and side.curve.train}
    tables = []
    axes: tuple[tuple[Literal["tokens", "seconds"], Callable[[float], str]], ...] = (
        ("tokens", quantity), ("seconds", duration)
    )  # fmt: skip
    for axis, words in axes if lines else ():
        end = min(getattr(points[-1], axis) for points in lines.values())
        places = [share * end for share in SHARES]
        rows = [[name, *(f"{loss:.3f}" for loss in losses_at(points, places, axis))] for name, points in lines.items()]
        title = f"Loss on train over {axis}, {comparison.curve_unit}"
        tables.append(Table(title, ["", *map(words, places)], rows))
    return tables


def documents_that_moved(comparison: Comparison) -> list[Table]:
    """Return the documents of test that moved most, both ways: a table a run."""
    first, *others = comparison.runs
    tables = []
    for other, paired in zip(others, comparison.paired["test"], strict=True):
        if paired is not None and paired.moved:
            rows = [
                [one.name, one.opening, f"{one.challenger - one.opponent:+.3f}", f"{one.opponent:.3f}",
                 f"{one.challenger:.3f}"]
                for one in paired.moved
            ]  # fmt: skip
            titles = ["document", "begins", f"difference, {paired.unit}", first.name, other.name]
            tables.append(Table(f"Documents that moved most: {other.name} against {first.name}", titles, rows))
    return tables


def in_terminal(comparison: Comparison, everything: bool) -> Iterator[str]:
    """Yield the comparison as lines of a terminal."""
    yield from verdicts(comparison)
    for one in _tables(comparison, everything):
        yield ""
        yield one.title
        yield from columns([one.titles, *_without_repeats(one.rows)])
        if one.note:
            yield one.note
    for sample in comparison.samples:
        yield ""
        yield f"After: {sample.prompt}"
        for side, continuation in zip(comparison.runs, sample.continuations, strict=True):
            if continuation is not None:
                yield f"  {side.name}: {' '.join(continuation.split())}"


def in_markdown(comparison: Comparison, everything: bool) -> str:
    """Return the comparison in Markdown."""
    parts = [f"# {inline(title_of(comparison))}", *(inline(line) for line in verdicts(comparison))]
    for one in _tables(comparison, everything):
        rows = [[inline(cell) for cell in row] for row in one.rows]
        parts += [
            f"## {inline(one.title)}",
            table([inline(title) or " " for title in one.titles], rows),
            inline(one.note),
        ]
    if comparison.samples:
        parts.append("## Samples")
    for sample in comparison.samples:
        parts.append(f"After **{inline(sample.prompt)}**")
        for side, continuation in zip(comparison.runs, sample.continuations, strict=True):
            if continuation is not None:
                parts.append(f"{inline(side.name)}:\n\n> {quote(continuation.strip())}")
    return "\n\n".join(filter(None, parts))


def _tables(comparison: Comparison, everything: bool) -> list[Table]:
    found = [what_differs(comparison, everything), figures(comparison), costs(comparison)]
    found += losses_on_the_way(comparison)
    return [one for one in [*found, *documents_that_moved(comparison)] if one.rows]


def _without_repeats(rows: list[list[str]]) -> list[list[str]]:
    """Return the rows, a group named in its first row alone."""
    before = [[""], *rows]
    return [["" if row[0] == last[0] else row[0], *row[1:]] for row, last in zip(rows, before, strict=False)]


def _names(comparison: Comparison) -> list[str]:
    return [side.name for side in comparison.runs]


def _publication(side: Side) -> str:
    return ABSENT if side.promoted is None else "promoted" if side.promoted else "not promoted"


def _number(value: float | None, form: str) -> str:
    return ABSENT if value is None else format(value, form)


def quantity(number: float) -> str:
    """Return a number in as few digits as it deserves, as 1.2M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """Return a time in the unit that it deserves."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
