"""Overlap with the training text: equal to plain sets of tuples, whatever cuts the text; figures of two corpora."""

import functools
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textgen.text import overlap
from textgen.text.documents import Part, cut
from textgen.text.overlap import Overlap, Overlaps, Runs, worst

WIKITEXT = Path(__file__).parents[3] / "shared" / "wikitext" / "wikitext-2-v1"
THIRTEEN = "a b c d e f g h i j k l m"

# Few characters, so that runs recur: separators, a fold that grows, a mark, an ideograph, a kana, a lone surrogate.
some_text = st.text("ab" * 4 + "AB ,_ßéİ\u0301塔ア한\ud800", max_size=60)
documents = st.lists(some_text, max_size=6)


def parts(texts: Sequence[str]) -> list[Part]:
    return [Part(text, begins=True) for text in texts]


def measure(held_out: Sequence[str], train: Sequence[str]) -> Overlaps:
    runs = Runs({"test": parts(held_out)})
    runs.look_in(parts(train))
    return runs.overlaps()["test"]


def found(held_out: str, train: str) -> int:
    return int(measure([held_out], [train]).covered_D[0])


def by_document(overlaps: Overlaps) -> list[tuple[int, int, int]]:
    arrays = (overlaps.words_D, overlaps.covered_D, overlaps.longest_D)
    return list(zip(*(array.tolist() for array in arrays), strict=True))


@functools.cache
def spaced(char: str) -> str:
    """Return a character with spaces around it if it is a word of its own, or a space if it is a separator."""
    if unicodedata.category(char)[0] not in "LNM":
        return " "
    return f" {char} " if unicodedata.name(char, "").startswith(("CJK UNIFIED", "HIRAGANA", "KATAKANA")) else char


def plain_words(text: str) -> list[str]:
    return "".join(map(spaced, text.casefold())).split()


def plain_runs(words: list[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]


def plain_overlaps(texts: Sequence[str], train: Sequence[str], length: int) -> list[tuple[int, int, int]]:
    """Return of each document its words, how many are covered, and the longest run, by sets of tuples."""
    known = {run for document in train for run in plain_runs(plain_words(document), length)}
    overlaps = []
    for words in map(plain_words, texts):
        covered: set[int] = set()
        streak = longest = 0
        for start, run in enumerate(plain_runs(words, length)):
            streak = streak + 1 if run in known else 0
            if streak:
                covered |= set(range(start, start + length))
                longest = max(longest, streak + length - 1)
        overlaps.append((len(words), len(covered), longest))
    return overlaps


@st.composite
def cut_anywhere(draw, texts: Sequence[str]) -> list[Part]:
    """Draw the parts of documents, some of them cut, some parts without text."""
    pieces = []
    for text in texts:
        places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
        ends = [*places, len(text)]
        starts = [0, *places]
        pieces += [Part(text[s:e], begins=not n) for n, (s, e) in enumerate(zip(starts, ends, strict=True))]
    return pieces


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.data(), documents, documents, st.integers(1, 40), st.integers(2, 4))
def test_overlaps_are_those_of_sets_of_tuples(data, held_out, train, chunk_chars, run_words):
    """Runs of 2 to 4 words recur in random texts, as runs of 13 do not."""
    train = train + [text[len(text) // 4 :] for text in held_out[::2]]
    with mock.patch.multiple(overlap, CHUNK_CHARS=chunk_chars, RUN_WORDS=run_words):
        runs = Runs({"one": data.draw(cut_anywhere(held_out)), "other": parts(train)})
        runs.look_in(data.draw(cut_anywhere(train)))
        found = runs.overlaps()
    for name, texts in {"one": held_out, "other": train}.items():
        assert by_document(found[name]) == plain_overlaps(texts, train, run_words)


def test_a_run_of_13_words_is_found_and_12_are_not():
    overlaps = measure([f"x {THIRTEEN} y"], [f"u {THIRTEEN} v"])
    assert (overlaps.words_D.tolist(), overlaps.covered_D.tolist(), overlaps.longest_D.tolist()) == ([15], [13], [13])
    assert overlaps.share == 13 / 15
    assert found(f"x {THIRTEEN[:-2]} y", f"u {THIRTEEN[:-2]} v") == 0


def test_consecutive_runs_are_one_and_two_with_a_gap_are_not():
    words = [f"w{n}" for n in range(40)]
    overlaps = measure([" ".join(words)], [" ".join(words[:15]), " ".join(words[10:24]), " ".join(words[26:])])
    assert (overlaps.covered_D.tolist(), overlaps.longest_D.tolist()) == ([38], [15])


def test_case_punctuation_and_white_space_do_not_count():
    assert found(THIRTEEN, THIRTEEN.upper().replace(" ", ";\n- ")) == 13
    assert found("ß " + THIRTEEN, "SS_" + THIRTEEN) == 14
    assert found(THIRTEEN, THIRTEEN.replace(" ", "")) == 0
    assert found("ab " + THIRTEEN[2:], "a b" + THIRTEEN[3:]) == 0


def test_letters_that_change_places_between_words_are_another_run():
    """Hashes that only add up would take them for the same."""
    assert found("a bc" + THIRTEEN[3:], "b ac" + THIRTEEN[3:]) == 0


def test_ideographs_and_kana_are_words_and_hangul_is_between_spaces():
    assert measure(["塔の上、ラプンツェル abc塔d 한국어 사람"], []).words_D.tolist() == [3 + 6 + 3 + 2]


def test_a_run_lies_in_one_document():
    halves = [THIRTEEN[:12], THIRTEEN[12:]]
    assert measure([THIRTEEN], halves).share == 0
    assert measure(halves, [THIRTEEN]).share == 0
    runs = Runs({"test": parts([THIRTEEN])})
    runs.look_in([Part(THIRTEEN[:12], begins=True), Part(THIRTEEN[12:], begins=False)])
    assert runs.overlaps()["test"].share == 1


def test_a_word_that_a_part_cuts_is_one_word():
    runs = Runs({"test": [Part("hel", begins=True), Part("lo " + THIRTEEN, begins=False), Part("hel", begins=True)]})
    runs.look_in([Part("hello " + THIRTEEN, begins=True)])
    assert runs.overlaps()["test"].words_D.tolist() == [14, 1]
    assert runs.overlaps()["test"].covered_D.tolist() == [14, 0]


def test_short_and_empty_documents_have_no_run():
    overlaps = measure(["", "a b", "", ""], ["", "a b"])
    assert overlaps.words_D.tolist() == [0, 2, 0, 0]
    assert (overlaps.share, overlaps.longest) == (0, 0)
    assert (measure([], []).share, measure([], []).longest) == (0, 0)


def test_a_training_text_in_two_goes_is_as_one():
    runs = Runs({"test": parts([THIRTEEN, THIRTEEN.replace("a", "x")])})
    runs.look_in(parts([THIRTEEN]))
    assert runs.overlaps()["test"].covered_D.tolist() == [13, 0]
    runs.look_in(parts([THIRTEEN.replace("a", "x")]))
    assert runs.overlaps()["test"].covered_D.tolist() == [13, 13]


def test_one_text_as_all_three_splits_is_found_whole():
    text = parts([" ".join(f"w{n * n % 1009}" for n in range(start, start + 500)) for start in range(0, 5000, 500)])
    runs = Runs({"validation": text, "test": text})
    runs.look_in(text)
    for overlaps in runs.overlaps().values():
        assert (overlaps.share, overlaps.longest) == (1, 500)


def test_the_worst_documents_come_by_share_then_by_their_longest_run():
    overlaps = Overlaps(np.array([20, 0, 13, 40, 30]), np.array([0, 0, 13, 20, 30]), np.array([0, 0, 13, 20, 30]))
    assert worst(overlaps, 9) == [Overlap(4, 1.0, 30), Overlap(2, 1.0, 13), Overlap(3, 0.5, 20)]
    assert worst(overlaps, 1) == [Overlap(4, 1.0, 30)]


@pytest.mark.skipif(not WIKITEXT.is_dir(), reason="needs ../shared/wikitext")
def test_the_articles_of_wikitext_2_overlap_by_less_than_half_a_percent():
    """Between white space, so that a comma is a word too, it would be 0.49% of validation and 0.29% of test."""
    articles = {}
    for split in ("train", "validation", "test"):
        file = WIKITEXT / f"{split}-00000-of-00001.parquet"
        rows = pyarrow.parquet.read_table(file).column("text").to_pylist()
        articles[split] = parts(["".join(rows[document]) for document in cut(rows)])
    runs = Runs({name: articles[name] for name in ("validation", "test")})
    runs.look_in(articles["train"])
    shares = {name: round(100 * overlaps.share, 3) for name, overlaps in runs.overlaps().items()}
    assert shares == {"validation": 0.361, "test": 0.131}  # percent
