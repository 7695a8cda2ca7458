"""A comparison of runs as one HTML page: no script, nothing from a network, in the reader's light or dark theme."""

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from textgen.comparison.compare import Comparison, Paired, Side
from textgen.comparison.words import (
    GATE,
    Table,
    bounds_of,
    costs,
    documents_that_moved,
    duration,
    figures,
    quantity,
    title_of,
    verdicts,
    what_differs,
)
from textgen.files import write_atomic
from textgen.publishing.curves import Point, smooth
from textgen.sections import HELD_OUT

TEMPLATE_FILE = "page.html"
COLORS = 6  # of runs; then they begin again
WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 34, 42
TICKS = 5
DRAWN_POINTS = 400  # of a curve: more make the page large and the picture no clearer
EARLY = 0.05  # of a training: what is above the losses from there on is out of the picture

At = Callable[[Point], float]


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the page."""
    template = resources.files(__package__).joinpath(TEMPLATE_FILE).read_text("utf-8")
    title = title_of(comparison)
    body = "\n".join(_body(comparison, title))
    write_atomic(path, Template(template).substitute(title=escape(title), body=body))


def _body(comparison: Comparison, title: str) -> Iterator[str]:
    yield f"<h1>{escape(title)}</h1>"
    for line in verdicts(comparison):
        kind = "warning" if line in comparison.warnings else "quiet" if line.startswith(GATE) else "verdict"
        yield f'<p class="{kind}">{escape(line)}</p>'
    yield f'<ul class="runs">{"".join(_run(number, side) for number, side in enumerate(comparison.runs))}</ul>'
    differs = what_differs(comparison)
    yield f'{_section(differs.title)}<div class="settings">'
    same = "<p>Nothing that is known of the runs differs.</p>"
    yield _table(differs._replace(note=""), comparison) if differs.rows else same
    yield f"<details><summary>{escape(differs.note)} Show all</summary>"
    yield _table(what_differs(comparison, everything=True), comparison)
    yield "</details></div>"
    yield '<div class="plots">'
    for table, grouped in ((figures(comparison), True), (costs(comparison), False)):
        if table.rows:
            yield f"<div>{_section(table.title)}{_table(table, comparison, grouped)}</div>"
    yield "</div>"
    yield f'<div class="plots intervals">{"".join(_intervals(comparison))}</div>'
    if plots := list(_curves(comparison)):
        yield _section("Loss while training")
        yield _legend(comparison)
        yield f'<div class="plots">{"".join(plots)}</div>'
        yield '<p class="quiet">Points: the mean loss since the point before. Line: the mean of the points around.</p>'
    for table in documents_that_moved(comparison):
        yield _section(table.title)
        yield _documents(table)
    yield from _samples(comparison)


def _section(title: str) -> str:
    return f"<h2>{escape(title)}</h2>"


def _color(number: int) -> str:
    return f'style="--run: var(--run-{number % COLORS})"'


def _run(number: int, side: Side) -> str:
    facts = [
        f"{side.when:%Y-%m-%d %H:%M} UTC" if side.when is not None else None,
        side.training,
        *(f"flow run {run}" for run in side.flow_runs[:1]),
    ]
    lines = "<br>".join(escape(fact) for fact in facts if fact is not None)
    return f'<li {_color(number)}><b>{escape(side.name)}</b><span class="quiet">{lines}</span></li>'


def _legend(comparison: Comparison) -> str:
    names = (
        f'<span class="dot" {_color(number)}>{escape(side.name)}</span>' for number, side in enumerate(comparison.runs)
    )
    return f'<p class="quiet legend">{"".join(names)}</p>'


def _table(table: Table, comparison: Comparison, grouped: bool = True) -> str:
    """Return a table whose last columns are of the runs; of a grouped one a group's name stands above its rows."""
    titles = table.titles[grouped:]
    first = len(titles) - len(comparison.runs)
    head = "".join(
        f"<th>{escape(title)}</th>" if number < first
        else f'<th class="dot" {_color(number - first)}>{escape(title)}</th>'
        for number, title in enumerate(titles)
    )  # fmt: skip
    body, group = "", None
    for row in table.rows:
        if grouped and row[0] != group:
            group = row[0]
            body += f'<tr><th class="group" colspan="{len(titles)}">{escape(group)}</th></tr>'
        name, *values = row[grouped:]
        body += f"<tr><th>{escape(name)}</th>{''.join(map(_cell, values))}</tr>"
    note = f'<p class="quiet">{escape(table.note)}</p>' if table.note else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}'


def _cell(text: str) -> str:
    value, bracket, rest = text.partition(" (")
    if bracket and " to " in rest:  # an interval
        return f"<td>{escape(value)}<small>{escape(rest.removesuffix(')'))}</small></td>"
    return f"<td>{escape(text)}</td>"


def _documents(table: Table) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in [table.titles[0], *table.titles[2:]])
    body = ""
    for name, begins, difference, *values in table.rows:
        kind = "better" if difference.startswith("-") else "worse"
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        body += (
            f'<tr><td class="document">{escape(name)}<small>{escape(begins)}</small></td>'
            f'<td class="{kind}">{escape(difference)}</td>{cells}</tr>'
        )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _samples(comparison: Comparison) -> Iterator[str]:
    if comparison.samples:
        yield _section("Samples")
    for sample in comparison.samples:
        yield f'<p class="prompt">{escape(sample.prompt)} …</p><div class="samples">'
        for number, (side, text) in enumerate(zip(comparison.runs, sample.continuations, strict=True)):
            if text is not None:  # it was asked
                name = f'<span class="quiet dot" {_color(number)}>{escape(side.name)}</span>'
                yield f"<blockquote>{name}{escape(text.strip()) or '<i>nothing</i>'}</blockquote>"
        yield "</div>"


def _curves(comparison: Comparison) -> Iterator[str]:
    """Yield the plots of the losses over tokens and over seconds."""
    sides = [(number, side.curve) for number, side in enumerate(comparison.runs) if side.curve is not None]
    axes: list[tuple[str, At, Callable[[float], str]]] = [
        ("tokens", lambda point: point.tokens, quantity), ("time", lambda point: point.seconds, duration)
    ]  # fmt: skip
    for split in ("train", "validation"):
        curves = {number: list(getattr(curve, split)) for number, curve in sides if getattr(curve, split)}
        for name, at, words in axes if curves else ():
            yield _plot(f"{split}, {comparison.curve_unit}", name, curves, at, words, lines=split == "train")


def _plot(
    title: str, name: str, curves: dict[int, list[Point]], at: At, words: Callable[[float], str], lines: bool
) -> str:
    """Return a plot of losses: raw points, and a line through their means or, without `lines`, through themselves."""
    through = {number: smooth(points) if lines else points for number, points in curves.items()}
    later = [p.loss for points in through.values() for p in points if at(p) >= EARLY * at(points[-1])]
    low, high = min(later), max(later)
    margin = (high - low) * 0.06 or 0.5
    ticks_x, ticks_y = _ticks(0, max(at(points[-1]) for points in curves.values())), _ticks(low - margin, high + margin)
    right, bottom, top = ticks_x[1], low - margin, high + margin

    def x(point: Point) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * at(point) / right

    def y(loss: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (top - loss) / (top - bottom)

    parts = [f'<text class="title" x="{LEFT}" y="18">{escape(title)}</text>']
    for value in ticks_y[0]:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks_x[0]:
        place = LEFT + (WIDTH - LEFT - RIGHT) * value / right
        parts.append(f'<text x="{place:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{words(value)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(name)}</text>')
    clip = f"clip-{escape(title.split(',')[0])}-{name}"
    parts.append(
        f'<clipPath id="{clip}"><rect y="{TOP}" width="{WIDTH}" height="{HEIGHT - TOP - BOTTOM}"/>'
        f'</clipPath><g clip-path="url(#{clip})">'
    )
    for number, points in curves.items():
        radius, kind = (1.6, "points") if lines else (2.6, "marks")
        circles = "".join(f'<circle cx="{x(p):.1f}" cy="{y(p.loss):.1f}" r="{radius}"/>' for p in _thinned(points))
        line = " ".join(f"{x(p):.1f},{y(p.loss):.1f}" for p in _thinned(through[number]))
        parts.append(
            f'<g {_color(number)}><g class="{kind}">{circles}</g><polyline class="curve" points="{line}"/></g>'
        )
    return f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</g></svg></figure>'


def _intervals(comparison: Comparison) -> Iterator[str]:
    """Yield a plot a split: how far each run is from the first, with its bounds."""
    for split in reversed(HELD_OUT):
        pairs = [(number, pair) for number, pair in enumerate(comparison.paired[split], start=1) if pair is not None]
        if pairs and len({pair.unit for _, pair in pairs}) == 1:
            yield _interval_plot(split, pairs, comparison.runs)


def _interval_plot(split: str, pairs: Sequence[tuple[int, Paired]], runs: Sequence[Side]) -> str:
    bounds = [bound for _, pair in pairs for bound in (pair.low, pair.difference, pair.high) if bound is not None]
    reach = 1.15 * max(map(abs, bounds)) or 1.0
    height = TOP + 44 * len(pairs) + 26

    def x(value: float) -> float:
        return WIDTH / 2 + (WIDTH / 2 - RIGHT) * value / reach

    parts = [
        f'<text class="title" x="0" y="18">{split}, {pairs[0][1].unit}</text>',
        f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="{TOP}" y2="{height - 22}"/>',
        f'<text x="0" y="{height - 5}">better than {escape(runs[0].name)}</text>',
        f'<text x="{x(0)}" y="{height - 5}" text-anchor="middle">0</text>',
        f'<text x="{WIDTH}" y="{height - 5}" text-anchor="end">worse</text>',
    ]
    for row, (number, pair) in enumerate(pairs):
        y = TOP + 44 * row + 30
        words = f"{runs[number].name}: {pair.difference:+.3f}, {bounds_of(pair)}"
        low, high = -reach if pair.low is None else pair.low, reach if pair.high is None else pair.high
        parts.append(
            f'<g {_color(number)}><text x="0" y="{y - 12}">{escape(words)}</text>'
            f'<line class="bar" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y}" y2="{y}"/>'
            f'<circle class="mean" cx="{x(pair.difference):.1f}" cy="{y}" r="6"/></g>'
        )
    return f'<figure><svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg></figure>'


def _ticks(low: float, high: float) -> tuple[list[float], float]:
    """Return round numbers from `low` to `high`, a few of them, and `high`."""
    raw = (high - low) / TICKS or 1.0
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * times for times in (1, 2, 5, 10) if size * times >= raw)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(number * step, 12) for number in range(first, last + 1)], high


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Return at most DRAWN_POINTS of the points, evenly, with the first and the last."""
    if len(points) <= DRAWN_POINTS:
        return list(points)
    return [points[number * (len(points) - 1) // (DRAWN_POINTS - 1)] for number in range(DRAWN_POINTS)]
