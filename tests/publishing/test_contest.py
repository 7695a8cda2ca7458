"""A week later: files are added, renamed, deleted and edited, and the champion is compared on what it never saw."""

import itertools
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures import WORDS
from tests.publications import Publication, make
from textgen.config import Config, PublishConfig
from textgen.errors import InputError
from textgen.evaluation.scoring import read_documents
from textgen.publishing import contenders
from textgen.publishing.candidate import Candidate
from textgen.publishing.contenders import check_fractions, hold_contest
from textgen.publishing.drift import Changes, measure_drift
from textgen.publishing.version import Decision
from textgen.sections import SPLITS
from textgen.storage import Storage
from textgen.text.corpus import RawManifest, fetch, list_documents, read_units
from textgen.text.documents import Content
from textgen.text.report import DocumentList

MOVED = 2  # edited documents of train that are in test now
WEEK = Changes(came=30, went=15, stayed=185, moved=0)  # 20 are new, and 10 edited ones are new documents too


def write_notes(folder: Path, numbers: range, seed: int) -> None:
    draw = random.Random(seed)
    for number in numbers:
        lines = [" ".join(draw.choices(WORDS, k=10)) + "\n" for _ in range(8)]
        (folder / f"{number:03}.txt").write_text("".join(lines), "utf-8")


def is_in_test(text: str) -> bool:
    content = Content()
    content.add(text)
    return content.hash < 0.1 * 2**64


def splits_of(raw: RawManifest) -> dict[int, str]:
    """Return the split of each document, by its content's hash."""
    lists = {split: list_documents(raw, split) for split in SPLITS}
    return {number: split for split, found in lists.items() for number in found.column("hash").to_pylist()}


@pytest.fixture(scope="module")
def weeks(make_config, tmp_path_factory) -> tuple[Config, Publication, Publication]:
    """Return the configuration, and what was published before and after a week of changes."""
    root = tmp_path_factory.mktemp("weeks")
    notes = root / "notes"
    notes.mkdir()
    write_notes(notes, range(200), seed=1)
    config = make_config(
        data={"files": str(notes), "seq_length": 16, "validation_fraction": 0.1, "test_fraction": 0.1},
        tokenizer={"kind": "bpe", "vocab_size": 300},
        storage={"root": str(root / "data")},
        publish={"policy": "always"},  # a model of so few steps does not beat a unigram model
    )
    first = make(config)
    config = config.model_copy(update={"publish": PublishConfig()})
    write_notes(notes, range(200, 220), seed=2)
    for number in range(10):
        (notes / f"{number:03}.txt").rename(notes / f"renamed-{number}.txt")
    for number in range(10, 15):
        (notes / f"{number:03}.txt").unlink()
    train = set(list_documents(first.raw, "train").column("file").to_pylist())
    for number, name in enumerate(sorted(name for name in train if 20 <= int(name[:3]) < 200)[:10]):
        text = (notes / name).read_text("utf-8")
        moves = number < MOVED
        edits = (f"{text}edit {count}\n" for count in itertools.count())
        (notes / name).write_text(next(edit for edit in edits if is_in_test(edit) == moves), "utf-8")
    return config, first, make(config.model_copy(update={"seed": 5}))


def test_no_unchanged_document_changes_its_split(weeks):
    _, first, second = weeks
    before, after = splits_of(first.raw), splits_of(second.raw)
    stayed = before.keys() & after.keys()
    assert len(stayed) == WEEK.stayed
    assert all(before[document] == after[document] for document in stayed)


def test_the_report_says_what_came_and_went(weeks):
    config, first, second = weeks
    storage = Storage(config.storage)
    (storage.models("textgen") / "champion").write_text("v1\n")
    found = measure_drift(second.raw, config, storage)
    assert found.champion == first.published.version
    assert found.changes == WEEK


def test_the_champion_is_compared_on_documents_that_it_never_saw(weeks):
    _, first, second = weeks
    decision = second.published.decision
    names = list_documents(second.raw, "test").column("file").to_pylist()
    edited_in_test = [
        name for name, number in zip(names, list_documents(second.raw, "test").column("hash").to_pylist(), strict=True)
        if name in list_documents(first.raw, "train").column("file").to_pylist() and number not in splits_of(first.raw)
    ]  # fmt: skip
    assert len(edited_in_test) == MOVED
    assert decision.left_out == edited_in_test
    assert decision.documents == len(names) - len(edited_in_test)
    assert f"of test left out, known to the champion: {edited_in_test[0]}" in second.published.reason


def test_the_documents_that_moved_are_of_those_that_were_compared(weeks):
    """A document's place among those that were compared is another one than its place in test."""
    _, _, second = weeks
    decision, listed = second.published.decision, DocumentList(second.raw, "test")
    measured, test = read_documents(second.metrics, "test"), second.metrics.splits["test"]
    bits_D = measured.nats * test.tokens / test.tokens_scored / math.log(2)
    names = [listed.name(number) for number in range(len(measured.tokens))]
    assert decision.unit == "bits a byte", "its tokenizer is another one"
    assert decision.splits["test"].documents == decision.documents
    assert decision.moved
    for one in decision.moved:
        assert one.name not in decision.left_out
        number = names.index(one.name)
        assert one.challenger == pytest.approx((bits_D[number] / measured.bytes[number]).item())
        assert one.words == measured.words[number]
        assert " ".join(list(read_units(second.raw, "test"))[number].split()).startswith(one.opening)


def test_where_the_champions_text_is_gone_the_comparison_promotes_nothing(weeks, tmp_path, monkeypatch):
    """The documents that it was trained on were compared as any others, and the decision did not say so."""
    config, first, second = weeks
    monkeypatch.setattr(contenders, "decide", lambda *_: Decision(promoted=True, reason="better"))
    home, elsewhere = Storage(config.storage).models("textgen"), Storage.at(tmp_path)

    def contest(candidate: Candidate) -> Decision:
        return hold_contest(home, first.published, candidate, elsewhere, [])

    decision = contest(second.candidate)
    assert not decision.promoted
    assert decision.reason.startswith("better; but v1 may have been trained on documents of test")
    assert "is missing; `textgen models promote VERSION --name NAME` makes it the champion" in decision.reason
    assert contest(first.candidate).promoted, "of the same text, whose splits are apart"
    always = config.model_copy(update={"publish": PublishConfig(policy="always")})
    assert contest(replace(second.candidate, config=always)).promoted


def test_a_smaller_fraction_is_refused_for_text_that_the_champion_saw(weeks):
    config, *_ = weeks
    storage = Storage(config.storage)
    data = config.data.model_copy(update={"test_fraction": 0.05})
    smaller = config.model_copy(update={"data": data})
    with pytest.raises(InputError, match=r"data\.test_fraction=0\.05 is below the 0\.1 of textgen v"):
        check_fractions(fetch(data, storage), smaller, storage)
    larger = config.data.model_copy(update={"test_fraction": 0.2})
    check_fractions(fetch(larger, storage), config.model_copy(update={"data": larger}), storage)
