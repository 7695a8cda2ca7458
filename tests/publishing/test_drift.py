"""Data drift: what moved is named, what did not is the same, and nothing is measured where nothing is new."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures import WORDS
from tests.publications import write_text
from textgen.config import EvaluationConfig
from textgen.evaluation.evaluate import evaluate_rows
from textgen.model.pretrained import load_model
from textgen.publishing import drift
from textgen.publishing.drift import (
    SAMPLE_BYTES,
    Drift,
    Estimate,
    TextFigures,
    changes_in_words,
    compare_documents,
    estimate,
    judge,
    measure_drift,
    sample,
)
from textgen.sections import SPLITS, DataConfig
from textgen.storage import Storage
from textgen.text import corpus
from textgen.text.documents import CUT_WORDS, mark_rows


def figures(error: float = 0.0, **values: float | None) -> TextFigures:
    values = {"words_per_document": 10, "word_coverage": 0.98, "bytes_per_token": 3.0, "bits_per_byte": 2.0, **values}
    estimates = {
        name: None if value is None else Estimate(value=value, standard_error=error) for name, value in values.items()
    }
    return TextFigures(**estimates)


@pytest.fixture
def root(publication, tmp_path) -> Path:
    """Return a copy of a root with a champion, for tests that add text to it."""
    return Path(shutil.copytree(publication.config.root, tmp_path / "data"))


def measure(publication, root, draw_row, seed=1):
    """Freeze new text, its rows drawn by `draw_row`, and compare it with the champion's."""
    source = random.Random(seed)
    rows = {"train": 120, "validation": 40, "test": 20}
    text = {split: "".join(draw_row(source) + "\n" for _ in range(rows[split])) for split in SPLITS}
    storage = publication.config.storage.model_copy(update={"root": str(root)})
    data = publication.config.data.model_copy(update={"files": write_text(root.parent / f"text-{seed}", text)})
    config = publication.config.model_copy(update={"storage": storage, "data": data})
    return measure_drift(corpus.fetch(data, Storage(config.storage)), config, Storage(storage))


def alike(source):
    return " ".join(source.choices(WORDS, k=source.randint(4, 12)))


def test_another_draw_of_the_same_kind_of_text_is_the_same(publication, root):
    found = measure(publication, root, alike)
    assert (found.champion, found.verdict, found.reasons) == ("v1", "same", [])
    assert found.new.word_coverage.value == found.last.word_coverage.value == 1.0


def test_longer_rows_of_the_same_words_are_a_shift_in_length_alone(publication, root):
    found = measure(publication, root, lambda source: " ".join(source.choices(WORDS, k=source.randint(16, 24))))
    assert found.verdict == "shifted"
    assert [reason.split()[0] for reason in found.reasons] == ["words_per_document"]


def test_unknown_words_are_a_shift_in_coverage_tokens_and_bits(publication, root):
    found = measure(publication, root, lambda source: " ".join(source.choices(["quartz", "vex", "jumbo"], k=8)))
    assert found.verdict == "shifted"
    assert [reason.split()[0] for reason in found.reasons] == ["word_coverage", "bytes_per_token", "bits_per_byte"]
    assert found.reasons[0] == "word_coverage 0, 1 before"
    assert found.new.bits_per_byte.value > found.last.bits_per_byte.value
    assert found.new.bytes_per_token.value < found.last.bytes_per_token.value


def test_the_text_of_the_champion_itself_is_not_measured(publication, monkeypatch):
    monkeypatch.setattr(drift, "_compare", None)
    assert measure_drift(publication.raw, publication.config, Storage(publication.config.storage)) is None


def test_without_a_champion_nothing_is_measured(publication, make_config, tmp_path):
    config = make_config(storage={"root": str(tmp_path)})
    assert measure_drift(publication.raw, config, Storage(config.storage)) is None


def test_a_comparison_is_made_once(publication, root, monkeypatch):
    first = measure(publication, root, alike)
    monkeypatch.setattr(drift, "_compare", None)
    assert measure(publication, root, alike) == first


def test_where_the_champions_text_is_gone_the_verdict_says_so(publication, root):
    shutil.rmtree(root / "raw")
    found = measure(publication, root, alike)
    assert found.verdict == "not compared"
    assert "is missing" in found.reasons[0]
    assert found.new is None


def test_bits_a_byte_and_bytes_a_token_are_those_of_the_champion_on_the_sample(publication, root):
    found = measure(publication, root, alike)
    rows, loaded = list(corpus.read_rows(publication.raw, "validation")), load_model(publication.published.folder)
    theirs = evaluate_rows(loaded, rows, EvaluationConfig(stride=16)).metrics
    assert found.last.bits_per_byte.value == pytest.approx(theirs.bits_per_byte, rel=5e-3)  # without the first token
    assert found.last.bytes_per_token.value == pytest.approx(theirs.bytes / theirs.tokens, rel=5e-3)


def test_the_standard_error_is_that_of_resampled_documents():
    draw = np.random.default_rng(0)
    below = draw.integers(5, 50, 200)
    above = below * draw.normal(3.0, 0.5, 200)
    found = estimate(above, below)
    picks = draw.integers(0, 200, (4000, 200))
    resampled = above[picks].sum(axis=1) / below[picks].sum(axis=1)
    assert found.value == pytest.approx(above.sum() / below.sum())
    assert found.standard_error == pytest.approx(resampled.std(), rel=0.1)


def test_two_draws_of_one_kind_of_text_are_seldom_called_a_shift():
    draw = np.random.default_rng(0)

    def text() -> TextFigures:
        lengths = draw.lognormal(2, 1, 25)
        tokens = lengths * draw.normal(1.3, 0.2, 25)
        return TextFigures(
            words_per_document=estimate(lengths, np.ones(25)), word_coverage=estimate(0.9 * lengths, lengths),
            bytes_per_token=estimate(5 * lengths, tokens),
            bits_per_byte=estimate(tokens * draw.normal(3, 0.5, 25), 5 * lengths),
        )  # fmt: skip

    assert sum(bool(judge(text(), text())) for _ in range(200)) <= 10


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({}, []),
        ({"words_per_document": 15}, []),
        ({"words_per_document": 16}, ["words_per_document"]),
        ({"words_per_document": 6}, ["words_per_document"]),
        ({"word_coverage": 0.97}, []),
        ({"word_coverage": 0.95}, ["word_coverage"]),
        ({"bytes_per_token": 3.2}, ["bytes_per_token"]),
        ({"bits_per_byte": 2.05}, []),
        ({"bits_per_byte": 1.0}, ["bits_per_byte"]),
        ({"bits_per_byte": 2.2}, ["bits_per_byte"]),
        ({"bits_per_byte": None}, ["bits_per_byte"]),
    ],
)
def test_a_figure_past_its_bound_is_named_and_one_within_it_is_not(changes, moved):
    reasons = judge(figures(), figures(**changes))
    assert [reason.split()[0] for reason in reasons] == moved


def test_a_figure_within_the_error_of_the_samples_has_not_moved():
    assert judge(figures(error=1.0), figures(error=1.0, words_per_document=14, bytes_per_token=6.0)) == []
    assert len(judge(figures(error=0.5), figures(error=0.5, bytes_per_token=6.0))) == 1


@pytest.mark.parametrize(
    ("last", "new", "said"),
    [
        (None, None, None),
        (1000, 1000, None),
        (1000, None, "long files were cut into documents of about 1,000 words before and are whole now"),
        (None, 250, "long files were whole before and are cut into documents of about 250 words now"),
        (1000, 500, "of about 1,000 words before and are cut into documents of about 500 words now"),
    ],
)
def test_that_long_files_are_cut_otherwise_than_before_is_told(tmp_path, last, new, said):
    """With more documents long files became whole, and their documents came and went without a word of why."""
    files = write_text(tmp_path / "text", {split: split for split in SPLITS})
    raw = corpus.fetch(DataConfig(files=files), Storage.at(tmp_path / "data"))

    def cut(words: int | None) -> corpus.RawManifest:
        changes = {"cut": words is not None, "cut_words": words or CUT_WORDS}
        return raw.model_copy(update={"reading": raw.reading.model_copy(update=changes)})

    changes = compare_documents(cut(last), cut(new))
    words = changes_in_words(Drift(key="k", champion="v1", raw_key="r", verdict="same", reasons=[], changes=changes))
    assert words.startswith("; 0 documents came, 0 went, 3 stayed")
    assert ("long files" in words) == (said is not None)
    assert said is None or f"{said}: their text is in other documents" in words


def sample_of(rows: list[str]) -> list[str]:
    return sample(mark_rows(rows), sum(len(row.encode()) for row in rows))


def test_the_sample_of_a_large_text_is_bounded_and_reaches_its_end():
    rows = [f"{number} naïve {'x' * 1000}\n" for number in range(1000)]
    taken = sample_of(rows)
    assert SAMPLE_BYTES - 8000 < sum(len(row.encode()) for row in taken) <= SAMPLE_BYTES
    assert int(taken[-1].split()[0]) > 900
    assert sum(len(row.encode()) for row in sample_of(["é" * SAMPLE_BYTES])) == SAMPLE_BYTES
    assert sample_of(rows[:3]) == rows[:3]
    uneven = ["é" * 50_000, "a", "é" * 50_000, "b"]
    assert sum(len(row.encode()) for row in sample_of(uneven)) == SAMPLE_BYTES
