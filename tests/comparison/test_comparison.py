"""Runs side by side: the gate's own figures, no figure of different text, and a page that stands alone."""

import itertools
import math
import re
import shutil
from dataclasses import replace
from typing import Any

import pytest

from textgen.comparison import compare as module
from textgen.comparison.compare import Comparison, compare_runs
from textgen.comparison.page import write_page
from textgen.comparison.record import Record
from textgen.comparison.words import in_markdown, in_terminal, verdicts
from textgen.publishing.curves import Point, losses_at, smooth
from textgen.publishing.runs import find_run
from textgen.storage import Storage
from textgen.training.figures import LOG_FILE, read_log


def compare(storage: Storage, *names: str) -> Comparison:
    return compare_runs([find_run(name, storage, "textgen") for name in names], storage)


@pytest.fixture(scope="module")
def storage(rivals) -> Storage:
    return Storage(rivals[0].config.storage)


@pytest.fixture(scope="module")
def comparison(storage) -> Comparison:
    return compare(storage, "v1", "v2")


def test_the_figures_are_those_of_the_gate(comparison, rivals):
    decision = rivals[0].published.decision
    (paired,) = comparison.paired["test"]
    assert decision.opponent == "v1"
    assert (paired.first, paired.other, paired.difference) == (
        decision.champion,
        decision.challenger,
        decision.difference,
    )
    assert (paired.low, paired.high, paired.unit) == (decision.low, decision.high, decision.unit)
    assert paired.documents == decision.documents
    assert decision.reason in comparison.runs[1].gate
    assert comparison.warnings == []


def test_the_other_way_round_the_difference_has_the_other_sign(storage, comparison):
    (there,), (back,) = comparison.paired["test"], compare(storage, "v2", "v1").paired["test"]
    assert back.difference == pytest.approx(-there.difference)
    assert (back.low, back.high) == (pytest.approx(-there.high), pytest.approx(-there.low))
    assert [one.name for one in back.moved] == [one.name for one in reversed(there.moved)]
    assert there.moved


def test_runs_scored_on_different_text_are_not_compared_and_that_is_said_first(storage):
    found = compare(storage, "v1", "v3")
    assert found.paired == {"validation": [None], "test": [None]}
    assert "scored on different text" in verdicts(found)[0]
    assert "scored on different text" in next(in_terminal(found, everything=False))


def test_runs_scored_with_different_strides_are_not_compared_and_that_is_said(storage, monkeypatch):
    """The same weights were surely better than themselves."""
    read, strides = module.read_record, itertools.count(1)

    def read_another(*arguments: Any) -> Record:
        record = read(*arguments)
        return replace(record, metrics=record.metrics.model_copy(update={"stride": next(strides)}))

    monkeypatch.setattr(module, "read_record", read_another)
    found = compare(storage, "v1", "v2")
    assert found.paired == {"validation": [None], "test": [None]}
    assert "measured with a stride of 1 and textgen v2 of 2" in found.warnings[0]


def test_only_what_differs_is_shown_and_the_rest_is_counted(comparison):
    shown = {one.name: one.values for one in comparison.differences if one.differs}
    assert shown.pop("training.max_steps") == ["20", "40"]
    assert not [name for name in shown if name.startswith(("training.", "model.", "data."))]
    lines = "\n".join(in_terminal(comparison, everything=False))
    assert "training.max_steps" in lines and "training.batch_size" not in lines
    assert "training.batch_size" in "\n".join(in_terminal(comparison, everything=True))


def test_a_curve_has_every_logged_loss(comparison, rivals):
    second, _ = rivals
    logged = [line for line in read_log(second.checkpoint.folder) if "train/loss_nats" in line]
    curve = comparison.runs[1].curve
    assert [(one.tokens, one.loss) for one in curve.train] == [
        (line["train/tokens"], line["train/loss_nats"]) for line in logged
    ]
    assert [one.seconds for one in curve.train] == [
        pytest.approx(sum(value for name, value in line.items() if name.startswith("seconds/"))) for line in logged
    ]
    assert [one.loss for one in curve.validation] == [one.loss_nats for one in second.checkpoint.curve]


def test_without_a_log_the_curve_is_that_of_the_validations(rivals, tmp_path):
    shutil.copytree(rivals[0].config.root, tmp_path / "data")
    storage = Storage.at(tmp_path / "data")
    (storage.training(rivals[0].checkpoint.folder.name) / LOG_FILE).unlink()
    curve = compare(storage, "v1", "v2").runs[1].curve
    trained = [one.train_loss_nats for one in rivals[0].checkpoint.curve if one.train_loss_nats is not None]
    assert [one.loss for one in curve.train] == trained


def test_a_run_whose_training_is_gone_has_figures_and_no_curve(rivals, tmp_path):
    shutil.copytree(rivals[0].config.root, tmp_path / "data")
    storage = Storage.at(tmp_path / "data")
    shutil.rmtree(storage.training(rivals[0].checkpoint.folder.name))
    found = compare(storage, "v1", "v2")
    assert found.runs[1].curve is None and found.paired["test"] != [None]
    assert "the training of textgen v2 is gone" in found.warnings[0]
    write_page(found, tmp_path / "page.html")


def test_samples_stand_side_by_side(comparison, rivals):
    written = {one.prompt: one.continuation for one in rivals[0].published.samples}
    assert {one.prompt: one.continuations[1] for one in comparison.samples} == written
    assert all(None not in one.continuations for one in comparison.samples)


def test_the_page_needs_no_network_and_no_script(comparison, tmp_path):
    write_page(comparison, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and "@import" not in page
    assert not re.search(r"""(?:src|href)\s*=|url\((?!#)""", page)
    assert page.count("<svg") == 6  # train and validation over tokens and seconds, two intervals
    assert "nan" not in re.findall(r'points="([^"]*)"', page)


def test_foreign_text_is_no_markup(comparison, tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    sample = comparison.samples[0].model_copy(update={"prompt": evil, "continuations": [evil, evil]})
    run = comparison.runs[0].model_copy(update={"name": evil})
    found = comparison.model_copy(update={"samples": [sample], "runs": [run, comparison.runs[1]]})
    write_page(found, tmp_path / "page.html")
    assert "<img" not in (tmp_path / "page.html").read_text()
    assert "<img" not in in_markdown(found, everything=False).replace("\\<img", "")


def test_too_few_documents_give_no_bound_and_no_verdict(comparison):
    (paired,) = comparison.paired["test"]
    unsure = paired.model_copy(update={"low": None, "high": None})
    found = comparison.model_copy(update={"paired": {**comparison.paired, "test": [unsure]}})
    assert "cannot be told apart" in verdicts(found)[0] and "no bound to no bound" in verdicts(found)[0]


def test_a_smoothed_line_ends_where_its_points_end():
    points = [Point(float(step), float(step), math.exp(-step / 20)) for step in range(100)]
    line = smooth(points)
    assert (line[0], line[-1]) == (points[0], points[-1])
    assert losses_at(points, [0.5], "tokens") == [pytest.approx((1 + math.exp(-1 / 20)) / 2)]


def test_trainings_that_were_not_evaluated_have_curves_and_no_figures(rivals, checkpoint, storage, tmp_path):
    copy = shutil.copytree(checkpoint.folder, tmp_path / "alone", ignore=shutil.ignore_patterns("evaluations"))
    found = compare(storage, str(copy), str(rivals[1].checkpoint.folder))
    assert "different text" in found.warnings[0] and "alone was not evaluated" in found.warnings[1]
    assert found.paired["test"] == [None] and found.runs[0].curve.train
    assert f"{checkpoint.curve[-1].loss_nats:.3f}" in "\n".join(in_terminal(found, everything=False))
    write_page(found, tmp_path / "page.html")
