"""Where a version stands beside the champion, in whatever place, the figures of both are those of the gate."""

import json
import re
import shutil
from typing import Any, NamedTuple

import pytest

from flows.train_flow import summarize
from tasks.report import compare
from tests.publications import Publication, make, write_text
from textgen.__main__ import main
from textgen.evaluation.evaluate import evaluate_split
from textgen.evaluation.scoring import SplitMetrics
from textgen.files import read_json
from textgen.model.find import read_champion
from textgen.model.pretrained import load_model
from textgen.publishing.card import CARD_FILE
from textgen.publishing.version import LINEAGE_FILE, METRICS_FILE, Decision
from textgen.sections import HELD_OUT
from textgen.storage import Storage
from textgen.text.corpus import read_rows
from textgen.text.report import report_on

BETWEEN = r'(?: +| \| |", "v1 \(champion[^"]*": ")'  # the two figures of a row
PROMOTED, KEPT = "better", "worse"


class Case(NamedTuple):
    """A version that was published on another text than the champion, and the champion's true figures on that text."""

    made: Publication
    promoted: bool
    stale: dict[str, dict[str, float]]  # the champion's, of the text that it was published with
    champion: dict[str, SplitMetrics]


@pytest.fixture(scope="module", params=[PROMOTED, KEPT])
def case(request, publication, tmp_path_factory) -> Case:
    """Publish `mine` on one text, then a better or a worse version on another validation and test text."""
    root = tmp_path_factory.mktemp("mine")
    shutil.copytree(publication.config.root, root / "data")
    (root / "data" / "models" / "textgen").rename(root / "data" / "models" / "mine")
    halves = {split: "".join(list(read_rows(publication.raw, split))[::2]) for split in HELD_OUT}
    text = {"train": "".join(read_rows(publication.raw, "train")), **halves}
    config = publication.config.model_copy(
        update={
            "name": "mine",
            "data": publication.config.data.model_copy(update={"files": write_text(root / "text", text)}),
            "storage": publication.config.storage.model_copy(update={"root": str(root / "data")}),
            "training": publication.config.training.model_copy(
                update={"max_steps": 60 if request.param == PROMOTED else 5}
            ),
        }
    )
    made = make(config)
    v1 = made.published.folder.parent / "v1"
    loaded = load_model(v1)
    true = {split: evaluate_split(loaded, made.raw, split, True, config.evaluation).metrics for split in HELD_OUT}
    return Case(made, request.param == PROMOTED, read_json(v1 / METRICS_FILE)["splits"], true)


def test_the_record_has_both_models_on_the_new_text(case):
    decision = case.made.published.decision
    assert (case.made.published.version, decision.promoted, decision.opponent) == ("v2", case.promoted, "v1")
    assert decision.scored_again
    for split in HELD_OUT:
        beside, ours = decision.splits[split], case.made.metrics.splits[split]
        assert beside.documents == 10
        assert beside.challenger.loss_nats == pytest.approx(ours.loss_nats)
        assert beside.challenger.bits_per_byte == pytest.approx(ours.bits_per_byte)
        assert beside.opponent.loss_nats == pytest.approx(case.champion[split].loss_nats)
        assert beside.opponent.bits_per_byte == pytest.approx(case.champion[split].bits_per_byte)
    test = decision.splits["test"]
    assert (test.challenger.loss_nats, test.opponent.loss_nats) == (decision.challenger, decision.champion)
    assert Decision.model_validate(read_json(case.made.published.folder / LINEAGE_FILE)["decision"]) == decision


def shown_in(place: str, case: Case, capsys) -> str:
    """Return what a place shows of the version beside the champion."""
    published = case.made.published
    match place:
        case "the table in the UI":
            return json.dumps(compare(published, case.made.metrics))
        case "the card":
            _, _, body = (published.folder / CARD_FILE).read_text("utf-8").partition("\n---\n")
            head, *sections = body.split("\n## ")
            return "\n".join([head, *(one for one in sections if one.startswith("Decision\n"))])
        case "models show":
            capsys.readouterr()
            root = case.made.config.storage.root
            assert main(["models", "show", "v2", "--name", "mine", "--root", root]) == 0
        case _:
            summarize(result_of(case.made))
    return capsys.readouterr().out


def result_of(made: Publication) -> dict[str, Any]:
    """Return what a run leaves, as far as its summary shows it."""
    return {
        "config": made.config.model_dump(mode="json"),
        "stages": {}, "drift": None, "tokenizer": None, "raw": made.raw.model_dump(mode="json"),
        "text": report_on(made.raw, Storage(made.config.storage)).content(),
        "checkpoint": made.checkpoint.model_dump(mode="json"),
        "metrics": {name: split.model_dump(mode="json") for name, split in made.metrics.splits.items()},
        "published": made.published.model_dump(mode="json"),
        "champion": read_champion(made.published.folder.parent),
    }  # fmt: skip


@pytest.mark.parametrize("place", ["the table in the UI", "the summary", "the card", "models show"])
def test_each_place_shows_the_champion_as_the_gate_scored_it(place, case, capsys):
    """The table had the champion's figures of its own text, and none at all once the new version was the champion."""
    shown = shown_in(place, case, capsys)
    for split in HELD_OUT:
        champion, ours = case.champion[split], case.made.metrics.splits[split]
        for figure, decimals in (("loss_nats", 4), ("token_perplexity", 2), ("bits_per_byte", 4)):
            pair = [f"{getattr(model, figure):.{decimals}f}" for model in (ours, champion)]
            assert re.search(rf"{pair[0]}{BETWEEN}{pair[1]}", shown), (split, figure)
            assert f"{case.stale[split][figure]:.{decimals}f}" not in shown, (split, figure)
    assert ("champion before" in shown) == case.promoted


@pytest.mark.parametrize("place", ["the summary", "the card", "models show"])
def test_the_verdict_then_the_interval_then_the_documents_that_moved(place, case, capsys):
    shown, decision = shown_in(place, case, capsys), case.made.published.decision
    outcome = "promoted" if case.promoted else "not promoted"
    verdict = "etter" if case.promoted else "orse"
    says = rf"{verdict} by {abs(decision.difference):.3f} nats a token, \d+\.\d%, on 10 test documents; {outcome}"
    places = [re.search(says, shown).start(), shown.index("each bound with 95% confidence"), shown.index("moved most")]
    places += [shown.index(f"{one.challenger:,.3f}") for one in decision.moved]
    assert places == sorted(places)
    assert "scored again on this text" in shown


def test_a_person_knows_which_document_moved(case):
    decision = case.made.published.decision
    differences = [one.challenger - one.opponent for one in decision.moved]
    assert differences == sorted(differences) and 3 <= len(differences) <= 6
    rows = list(read_rows(case.made.raw, "test"))
    for one in decision.moved:
        name, _, number = one.name.rpartition(":")
        assert name == "test.txt"
        assert rows[int(number) - 1].split()[: len(one.opening.split()) - 1] == one.opening.split()[:-1]
        assert one.words == len(rows[int(number) - 1].split())


def test_the_list_says_which_figures_are_of_another_text(case, capsys):
    capsys.readouterr()
    assert main(["models", "list", "--name", "mine", "--root", case.made.config.storage.root]) == 0
    _, first, second, note = capsys.readouterr().out.splitlines()
    champion, other = (second, first) if case.promoted else (first, second)
    assert "champion" in champion and "of another text" not in champion
    assert "of another text" in other
    assert [first.count(" unigram "), second.count(" v1 ")] == [1, 1], "against which model each is better or worse"
    assert note == (
        f"of another text, or by another protocol, than that of {'v2' if case.promoted else 'v1'}: "
        "the two figures cannot be compared"
    )
