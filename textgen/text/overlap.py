"""How much of a held-out text stands in the training text too: the runs of 13 words that are in both.

A **word** is a longest run of letters, numbers and marks (Unicode's categories L, N and M) of the case-folded text.
All else is a separator: "Don't" is the two words "don" and "t", `a_b` is "a" and "b". Chinese and Japanese have no
spaces, so each ideograph and each kana is a word of its own. Thai, Lao, Khmer and Burmese get no such rule: a word goes
from one separator to the next, so only long copies are found. Nothing else is normalised: "é" written as one character
differs from "é" written as two.

The measure is that of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C) and of lm-eval's janitor, but for the
words: those are cut at white space, and the janitor removes punctuation ("dont"). Runs are compared by 64-bit hashes: a
run that is not among a billion training runs is taken for one of them with a probability of 5e-11.

Suffixes: W words, R runs, D documents.
"""

import functools
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from textgen.text.documents import Part

RUN_WORDS = 13
CHUNK_CHARS = 1 << 17  # hashed at once; the arrays of a chunk then fit a processor's cache
SPLIT_HASHES = 1 << 18  # looked up at once
FILTER_BITS_PER_RUN = 32  # one run in about 32 that is not known passes the filter

SEPARATOR, LETTER, ALONE = 0, 1, 2  # what a character is: between words, in a word, or a word of its own
WORDS_OF_THEIR_OWN = (
    (0x3005, 0x3007),  # iteration mark, closing mark, zero
    (0x3041, 0x30FF),  # hiragana, katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # ideographs
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # halfwidth katakana
    (0x1B000, 0x1B16F),  # historic kana
    (0x20000, 0x3FFFF),  # rare ideographs
)

Hashes = NDArray[np.uint64]
Counts = NDArray[np.int64]

BASE = 0x9E3779B97F4A7C15  # of the polynomials: any odd number that looks random
_POWERS: Hashes = np.full(2 * CHUNK_CHARS + RUN_WORDS, BASE, np.uint64)
_POWERS = np.cumprod(_POWERS, dtype=np.uint64)  # BASE, BASE^2 …, modulo 2^64
_INVERSE_POWERS: Hashes = np.full(len(_POWERS), pow(BASE, -1, 1 << 64), np.uint64)
_INVERSE_POWERS = np.cumprod(_INVERSE_POWERS, dtype=np.uint64)


@dataclass(frozen=True)
class Overlaps:
    """What was found of each document of a held-out text, in the order of the documents."""

    words_D: Counts
    covered_D: Counts  # words that lie in a run that was found
    longest_D: Counts  # words of the longest run that was found: 0, or at least 13, or all of a whole document

    @property
    def share(self) -> float:
        """The share of all words that lie in a run that was found."""
        return float(self.covered_D.sum() / max(self.words_D.sum(), 1))

    def with_copies(self, is_copy_D: NDArray[np.bool_]) -> "Overlaps":
        """Return the same, with documents that stand whole in train found whole, however short they are."""
        return Overlaps(
            self.words_D,
            np.where(is_copy_D, self.words_D, self.covered_D),
            np.where(is_copy_D, np.maximum(self.longest_D, self.words_D), self.longest_D),
        )

    @property
    def longest(self) -> int:
        """The words of the longest run that was found in any document."""
        return int(self.longest_D.max(initial=0))


class Overlap(NamedTuple):
    """What was found of one document."""

    document: int  # its number in the held-out text, from 0
    share: float  # of its words
    longest: int  # in words


class Runs:
    """The runs of 13 words of held-out texts, to be looked for in a training text.

    A run lies within one document. A document of fewer than 13 words has none: see `Overlaps.with_copies`. Memory is
    about 3 bytes a byte of held-out text, 4 for a moment, and does not grow with the training text.

        runs = Runs({"validation": validation_parts, "test": test_parts})
        runs.look_in(train_parts)
        runs.overlaps()["test"].share
    """

    def __init__(self, held_out: Mapping[str, Iterable[Part]]) -> None:
        """Read the held-out texts, each by its name."""
        self._texts = {name: _read_held_out(parts) for name, parts in held_out.items()}
        self._known = _HashSet([text.hashes_R for text in self._texts.values()])
        self._found = np.zeros(len(self._known.hashes), bool)  # of the known runs

    def look_in(self, train: Iterable[Part]) -> None:
        """Read a training text, or more of it, and note which runs are in it."""
        for hashes_R, _ in _runs(train):
            self._found[self._known.find(hashes_R)] = True

    def overlaps(self) -> dict[str, Overlaps]:
        """Return what was found of each held-out text until now.

        The longest run of a document is of its consecutive runs that were found: m of them are m + 12 words. That
        they also follow one another in the training text is assumed, not checked.
        """
        found = self._known.hashes[self._found]
        return {name: _overlaps(text, found) for name, text in self._texts.items()}


def worst(overlaps: Overlaps, count: int) -> list[Overlap]:
    """Return up to `count` documents of which something was found, the largest share first, then the longest run."""
    shares_D = overlaps.covered_D / np.maximum(overlaps.words_D, 1)
    order_D = np.lexsort((-overlaps.longest_D, -shares_D))[:count]
    return [Overlap(int(d), float(shares_D[d]), int(overlaps.longest_D[d])) for d in order_D if shares_D[d] > 0]


class _HeldOut(NamedTuple):
    words_D: Counts
    hashes_R: Hashes  # of all runs, in order: a document of n words has max(n - 12, 0)


def _read_held_out(parts: Iterable[Part]) -> _HeldOut:
    words = 0
    starts_D: list[Counts] = [np.empty(0, np.int64)]  # how many words are before each document
    hashes_R: list[Hashes] = [np.empty(0, np.uint64)]
    for run_hashes, new in _runs(parts):
        hashes_R.append(run_hashes)
        starts_D.append(words + new.begins_D)
        words += len(new.hashes_W)
    bounds = np.concatenate([*starts_D, np.array([words])])
    return _HeldOut(bounds[1:] - bounds[:-1], np.concatenate(hashes_R))


def _overlaps(text: _HeldOut, found: Hashes) -> Overlaps:
    """Return what `found`, the sorted hashes of the runs that were found, cover of a text."""
    runs_D = np.maximum(text.words_D - (RUN_WORDS - 1), 0)
    run = np.flatnonzero(np.concatenate([_is_in(some, found) for some in _split(text.hashes_R)]))
    document = np.searchsorted(np.cumsum(runs_D), run, "right")
    # Where each found run starts, in words. Runs of two documents start at least 13 words apart.
    start = run + (np.cumsum(text.words_D - runs_D) - (text.words_D - runs_D))[document]
    step = np.diff(start, prepend=-RUN_WORDS)  # from the found run before it
    covered_D = np.zeros(len(text.words_D), np.int64)
    np.add.at(covered_D, document, np.minimum(step, RUN_WORDS))
    first = np.flatnonzero(step != 1)  # of consecutive found runs
    longest_D = np.zeros(len(text.words_D), np.int64)
    np.maximum.at(longest_D, document[first], np.diff(first, append=len(run)) + RUN_WORDS - 1)
    return Overlaps(text.words_D, covered_D, longest_D)


class _HashSet:
    """A set of hashes, with a filter that tells most others apart at the cost of one look."""

    def __init__(self, hashes: list[Hashes]) -> None:
        self.hashes = _unique(np.concatenate([np.empty(0, np.uint64), *hashes]))
        slot_bits = max((len(self.hashes) * FILTER_BITS_PER_RUN).bit_length(), 3)
        self._shift = np.uint64(64 - slot_bits)
        self._filter = np.zeros(1 << (slot_bits - 3), np.uint8)
        for some in _split(self.hashes):
            byte, bit = self._slots(some)
            np.bitwise_or.at(self._filter, byte, bit)

    def find(self, hashes: Hashes) -> NDArray[np.intp]:
        """Return the indices in the set of those of the hashes that are in it."""
        byte, bit = self._slots(hashes)
        candidates = np.unique(hashes[self._filter[byte] & bit > 0])  # sorted, they are looked up far faster
        return np.searchsorted(self.hashes, candidates[_is_in(candidates, self.hashes)])

    def _slots(self, hashes: Hashes) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
        """Return the byte and the bit of the filter that stand for each hash, by its highest bits."""
        slot = hashes >> self._shift
        return (slot >> np.uint64(3)).astype(np.intp), np.uint8(1) << (slot & np.uint64(7)).astype(np.uint8)


def _unique(hashes: Hashes) -> Hashes:
    """Return the different hashes, sorted. `np.unique` would copy them; these are sorted in their place."""
    hashes.sort()
    return hashes[np.concatenate([np.ones(len(hashes[:1]), bool), hashes[1:] != hashes[:-1]])]


def _split(hashes: Hashes) -> list[Hashes]:
    """Return the hashes in parts, so that what is made of all of them is never in memory at once."""
    return np.array_split(hashes, len(hashes) // SPLIT_HASHES + 1)


def _is_in(hashes: Hashes, known: Hashes) -> NDArray[np.bool_]:
    """Return which of the hashes are among `known`, which are sorted."""
    if not len(known):
        return np.zeros(len(hashes), bool)
    return known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)] == hashes


class _Words(NamedTuple):
    """The next words of a text."""

    hashes_W: Hashes
    begins_D: Counts  # how many of these words are before each document that begins among them


def _runs(parts: Iterable[Part]) -> Iterator[tuple[Hashes, _Words]]:
    """Yield the hashes of all runs of a text in order, some at a time, with the words that they end in."""
    tail = np.empty(0, np.uint64)  # the words that begin a run that has not ended
    for new in _words(parts):
        words = np.concatenate([tail, new.hashes_W])
        begins = new.begins_D + len(tail)
        document_W = np.searchsorted(begins, np.arange(len(words)), "right")  # 0: it began earlier
        starts = np.flatnonzero(document_W[RUN_WORDS - 1 :] == document_W[: 1 - RUN_WORDS])
        yield _polynomials(words, starts, starts + RUN_WORDS), new
        tail = words[max(len(words) - RUN_WORDS + 1, *begins[-1:], 0) :]


def _words(parts: Iterable[Part]) -> Iterator[_Words]:
    """Yield the hashes of all words of a text in order, some at a time."""
    unfinished = np.empty(0, np.uint64)  # the polynomial of a word that the chunk's end cuts: none or one
    for text, begins in _chunks(parts):
        chars = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        kinds = np.concatenate([np.full(len(unfinished), LETTER, np.uint8), _kinds()[chars]])
        starts, ends = _word_bounds(kinds)
        polynomials = _polynomials(np.concatenate([unfinished, chars]), starts, ends)
        begins_D = np.searchsorted(starts, np.array(begins, np.int64) + len(unfinished))
        whole = len(starts) - int(kinds[-1] == LETTER)
        unfinished = polynomials[whole:]
        yield _Words(_mix(polynomials[:whole]), begins_D)


def _chunks(parts: Iterable[Part]) -> Iterator[tuple[str, list[int]]]:
    """Yield the case-folded text, some at a time, and where in it documents begin.

    A line feed stands before each document and after the last one, so that a word ends there.
    """
    pieces: list[str] = []
    begins: list[int] = []
    chars = 0
    for part in parts:
        if part.begins:
            begins.append(chars)
        text = "\n" * part.begins + part.text.casefold()
        for start in range(0, len(text), CHUNK_CHARS):
            pieces.append(text[start : start + CHUNK_CHARS])
            chars += len(pieces[-1])
            if chars >= CHUNK_CHARS:
                yield "".join(pieces), begins
                pieces, begins, chars = [], [], 0
    yield "".join([*pieces, "\n"]), begins


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """Return what each character of Unicode is, by its code point."""
    categories = map(unicodedata.category, map(chr, range(sys.maxunicode + 1)))
    kinds = np.fromiter((LETTER if c[0] in "LNM" else SEPARATOR for c in categories), np.uint8)
    for first, last in WORDS_OF_THEIR_OWN:
        kinds[first : last + 1] *= ALONE
    return kinds


def _word_bounds(kinds: NDArray[np.uint8]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return where each word starts and ends."""
    alone = kinds == ALONE
    inside = np.concatenate([[False], kinds == LETTER, [False]])
    starts = np.flatnonzero(alone | (inside[1:-1] & ~inside[:-2]))
    ends = np.flatnonzero(alone | (inside[1:-1] & ~inside[2:])) + 1
    return starts, ends


def _polynomials(values: NDArray[Any], starts: NDArray[np.intp], ends: NDArray[np.intp]) -> Hashes:
    """Return of each slice, with values v0 … vn, the sum v0 BASE^n + … + vn, modulo 2^64.

    A slice whose first values are replaced by their own sum has the same sum: so a word can be cut and go on later.
    """
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * _INVERSE_POWERS[: len(values)], out=sums[1:])
    return (sums[ends] - sums[starts]) * _POWERS[ends - 1]


def _mix(hashes: Hashes) -> Hashes:
    """Return the hashes with every bit dependent on all bits (the finaliser of SplitMix64: Steele et al. 2014).

    Without it the polynomials of a run and of its words add up: "a bc" would be "b ac".
    """
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))
