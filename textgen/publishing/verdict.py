"""A decision as people read it: the verdict in words, both models side by side, the documents that moved most."""

import math
import shlex
from collections.abc import Iterator, Sequence

from textgen.config import root_option
from textgen.publishing.markdown import inline, table
from textgen.publishing.version import Beside, Decision, Figures, Moved, PublishedManifest
from textgen.terminal import columns, counted, printable, shorten

UNIGRAM = "unigram"  # the opponent of the first version
LONGEST_DOCUMENT = 40  # characters of a document's name and first words, in a terminal
LONGEST_NAME = 24  # characters of its name alone
LARGEST_LOSS_NATS = 100.0  # whose perplexity is written out


def decision_of(published: PublishedManifest) -> Decision:
    """Return the decision about a version; of one from before they were kept, the outcome alone."""
    return published.decision or Decision(promoted=published.promoted, reason=published.reason)


def headline(decision: Decision) -> str:
    """Return the verdict, as `better by 0.289 nats a token, 5.4%, on 25 test documents; promoted`."""
    outcome = "promoted" if decision.promoted else "not promoted"
    if decision.difference is None:
        return f"{outcome} ({' '.join(decision.reason.split())})"
    return f"{difference_in_words(decision)}; {outcome}"


def in_words(decision: Decision) -> str:
    """Return a comparison in a line: the difference and its bounds."""
    return f"{difference_in_words(decision)} against {decision.opponent}; {_bounds_in_words(decision)}"


def background(decision: Decision) -> str:
    """Return what the verdict rests on, in a sentence: the opponent, the bounds of the difference, what stood against.

    It is empty where nothing was compared: the verdict says all then.
    """
    if decision.difference is None:
        return ""
    again = ", scored again on this text" if decision.scored_again else ""
    _, _, rest = " ".join(decision.reason.split()).partition("; ")  # after the difference, which the verdict has
    return f"Against {_opponent(decision)}{again}: {rest}."


def nothing_new(published: PublishedManifest, champion: str | None, root: str) -> str:
    """Return why a run had nothing to do; `champion` is the version in use."""
    version = f"{published.name} {published.version}"
    same = f"text, training settings and code versions are those of {version}"
    if published.promoted or champion == published.version:
        return same
    command = f"textgen models promote {published.version} --name {shlex.quote(published.name)}{root_option(root)}"
    return f"{same}; it stays unpromoted: the gate does not decide twice; `{command}` promotes it"


def figure_rows(decision: Decision, version: str) -> list[tuple[str, ...]]:
    """Return a table, titles first, of both models' figures on the same documents; nothing where none were compared."""
    rows = []
    for split, beside in _splits(decision).items():
        left_out = len(decision.left_out if split == "test" else decision.left_out_of_validation)
        documents = f"{beside.documents:,} of {beside.documents + left_out:,}" if left_out else f"{beside.documents:,}"
        for name, (ours, theirs), decimals in _pairs(beside):
            if ours is not None and theirs is not None:
                shown = (f"{ours:,.{decimals}f}", f"{theirs:,.{decimals}f}", _apart(ours - theirs, decimals))
                rows.append((split, documents, name, *shown))
    return [("split", "documents", "metric", version, _title(decision), "difference"), *rows] if rows else []


def moved_rows(decision: Decision, version: str) -> list[tuple[str, ...]]:
    """Return a table, titles first, of the documents of test that moved most; nothing where none are known."""
    rows = [
        (_named(one), f"{one.words:,}", f"{one.challenger:,.3f}", f"{one.opponent:,.3f}",
         _apart(one.challenger - one.opponent, 3))
        for one in decision.moved
    ]  # fmt: skip
    return [("document", "words", version, _title(decision), "difference"), *rows] if rows else []


def moved_title(decision: Decision) -> str:
    """Return what `moved_rows` are."""
    better = {one.challenger < one.opponent for one in decision.moved}
    none = f"; none became {'worse' if True in better else 'better'}" if len(better) == 1 else ""
    return f"The documents of test that moved most, in {decision.unit}{none}"


def in_lines(decision: Decision, version: str) -> Iterator[str]:
    """Yield what the verdict rests on, for a terminal: the background and both tables."""
    if words := background(decision):
        yield words
    if rows := figure_rows(decision, version):
        (split, _, *titles), *figures = _untitled(rows, decision)
        by_split = {name: f"{name}, {documents} document{'s' * (documents != '1')}" for name, documents, *_ in figures}
        grouped = [(by_split.pop(name, ""), *rest) for name, _, *rest in figures]  # a split is named once
        yield from ("", *columns([(split, *titles), *grouped], right=(2, 3)))
    if rows := moved_rows(decision, version):
        short = ["document", *(_named(one, LONGEST_NAME, LONGEST_DOCUMENT) for one in decision.moved)]
        named = [(name, *rest) for name, (_, *rest) in zip(short, _untitled(rows, decision), strict=True)]
        yield from ("", f"{moved_title(decision)}:", *columns(named, right=(1, 2, 3)))


def _untitled(rows: Sequence[tuple[str, ...]], decision: Decision) -> Sequence[tuple[str, ...]]:
    """Return a table in which the opponent is a version alone, as a terminal has room for: the sentence says who."""
    titles = tuple(decision.opponent or "" if title == _title(decision) else title for title in rows[0])
    return [titles, *rows[1:]]


def in_markdown(decision: Decision, version: str) -> str:
    """Return the verdict, what it rests on, and both models side by side, in Markdown."""
    verdict = headline(decision)
    parts = [f"**{inline(verdict[0].upper() + verdict[1:])}.**"]
    if words := background(decision):
        parts.append(inline(words))
    if rows := figure_rows(decision, version):
        parts.append(table(rows[0], [[inline(cell) for cell in row] for row in rows[1:]]))
    return "\n\n".join(parts)


def moved_in_markdown(decision: Decision, version: str) -> str:
    """Return the documents that moved most, in Markdown; nothing where none are known."""
    if not (rows := moved_rows(decision, version)):
        return ""
    return f"{moved_title(decision)}:\n\n{table(rows[0], [[inline(cell) for cell in row] for row in rows[1:]])}"


def difference_in_words(decision: Decision) -> str:
    """Return how much better or worse a version is than its opponent."""
    where = f"on {counted(decision.documents or 0, 'test document')}"
    if decision.difference is None:
        return f"no finite difference {where}"
    if decision.difference == 0:
        return f"neither better nor worse {where}"
    share = abs(decision.difference / decision.champion) if decision.champion else 0.0
    percent = f", {share:.1%}" if share >= 0.001 else ""
    better = "better" if decision.difference < 0 else "worse"
    return f"{better} by {_number(abs(decision.difference))} {decision.unit}{percent}, {where}"


def _bounds_in_words(decision: Decision) -> str:
    assert decision.required_confidence is not None
    low, high = decision.low, decision.high
    if low is None or high is None:
        return "too few documents for bounds"
    if high <= 0 or low >= 0:
        near, far = sorted((abs(low), abs(high)))
        span = f"{_number(near)} to {_number(far)} {'better' if high <= 0 else 'worse'}"
    else:
        span = f"{_number(-low)} better to {_number(high)} worse"
    return f"{span}, each bound with {100 * decision.required_confidence:g}% confidence"


def _number(value: float) -> str:
    """Return a difference with the digits that it deserves."""
    return f"{value:.3f}" if value >= 0.001 or value == 0 else f"{value:.1g}"


def _apart(difference: float, decimals: int) -> str:
    shown = f"{abs(difference):,.{decimals}f}"
    if not float(shown.replace(",", "")):
        return "same"
    return f"{shown} {'better' if difference < 0 else 'worse'}"


def _opponent(decision: Decision) -> str:
    if decision.opponent == UNIGRAM:
        return "unigram, a model of single tokens that the first version has to beat"
    return f"{decision.opponent}, the champion{' before it' if decision.promoted else ''}"


def _title(decision: Decision) -> str:
    if decision.opponent == UNIGRAM:
        return UNIGRAM
    return f"{decision.opponent} (champion{' before' if decision.promoted else ''})"


def _splits(decision: Decision) -> dict[str, Beside]:
    """Return both models by split; of a version from before these were kept, what it says of test."""
    if decision.splits or decision.difference is None:
        return decision.splits
    field = "loss_nats" if decision.unit == "nats a token" else "bits_per_byte"
    none = Figures(loss_nats=None, bits_per_byte=None)
    ours, theirs = (none.model_copy(update={field: rate}) for rate in (decision.challenger, decision.champion))
    return {"test": Beside(documents=decision.documents or 0, challenger=ours, opponent=theirs)}


def _pairs(beside: Beside) -> Iterator[tuple[str, tuple[float | None, float | None], int]]:
    """Yield each figure of both models: its name, the two values, its decimals."""
    losses = beside.challenger.loss_nats, beside.opponent.loss_nats
    yield "loss (nats a token)", losses, 4
    yield "token perplexity", (_perplexity(losses[0]), _perplexity(losses[1])), 2
    yield "bits a byte", (beside.challenger.bits_per_byte, beside.opponent.bits_per_byte), 4


def _perplexity(loss_nats: float | None) -> float | None:
    return None if loss_nats is None or loss_nats > LARGEST_LOSS_NATS else math.exp(loss_nats)


def _named(moved: Moved, longest_name: int | None = None, longest: int | None = None) -> str:
    """Return a document's name and first words, by which a person knows it; shortened, a long name keeps its end."""
    name, opening = (" ".join(text.split()) for text in (moved.name.removesuffix(" of test"), moved.opening))
    if longest_name is not None and len(name) > longest_name:
        name = f"…{name[1 - longest_name :]}"
    shown = f"{name}: {opening}" if opening else name
    return shown if longest is None else shorten(printable(shown), longest)
