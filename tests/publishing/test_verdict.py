"""A decision in words and in tables: what a person reads of it, in a terminal and in Markdown."""

from typing import Any

import pytest

from textgen.publishing.verdict import (
    background,
    figure_rows,
    headline,
    in_lines,
    in_words,
    moved_in_markdown,
    moved_rows,
    moved_title,
)
from textgen.publishing.version import Beside, Decision, Figures, Moved

HOSTILE = "a|b `c`\n# d \x1b[31m<script>"


def decide(**changes: Any) -> Decision:
    """Return a decision as the gate makes it."""
    values: dict[str, Any] = {
        "promoted": True, "reason": "", "opponent": "v1", "protocol": "sliding", "unit": "nats a token",
        "documents": 25, "challenger": 5.063, "champion": 5.352, "difference": -0.289, "low": -0.301, "high": -0.278,
        "confidence": 1.0, "min_improvement": 0.0, "required_confidence": 0.95,
        "splits": {"test": beside(25, (5.063, 1.75), (5.352, 1.85)), "validation": beside(22, (5.0, 1.7), (5.0, 1.7))},
    }  # fmt: skip
    decision = Decision(**values | changes)
    return decision if decision.reason else decision.model_copy(update={"reason": in_words(decision)})


def beside(documents: int, challenger: tuple[Any, Any], opponent: tuple[Any, Any]) -> Beside:
    ours, theirs = (Figures(loss_nats=nats, bits_per_byte=bits) for nats, bits in (challenger, opponent))
    return Beside(documents=documents, challenger=ours, opponent=theirs)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "better by 0.289 nats a token, 5.4%, on 25 test documents; promoted"),
        ({"promoted": False}, "better by 0.289 nats a token, 5.4%, on 25 test documents; not promoted"),
        ({"promoted": False, "difference": 0.2, "documents": 1, "unit": "bits a byte", "champion": 2.0},
         "worse by 0.200 bits a byte, 10.0%, on 1 test document; not promoted"),
        ({"difference": -0.0004}, "better by 0.0004 nats a token, on 25 test documents; promoted"),
        ({"promoted": False, "difference": 0.0}, "neither better nor worse on 25 test documents; not promoted"),
        ({"difference": None, "reason": "publish.policy=always"}, "promoted (publish.policy=always)"),
    ],
)  # fmt: skip
def test_the_verdict_comes_first_in_words(changes, said):
    assert headline(decide(**changes)) == said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Against v1, the champion before it: 0.278 to 0.301 better, each bound with 95% confidence."),
        ({"promoted": False, "low": 0.1, "high": 0.3, "difference": 0.2, "required_confidence": 0.999},
         "Against v1, the champion: 0.100 to 0.300 worse, each bound with 99.9% confidence."),
        ({"promoted": False, "high": 0.05, "scored_again": True},
         "Against v1, the champion, scored again on this text: 0.301 better to 0.050 worse, each bound with 95% "
         "confidence."),
        ({"low": None, "high": None}, "Against v1, the champion before it: too few documents for bounds."),
        ({"opponent": "unigram"},
         "Against unigram, a model of single tokens that the first version has to beat: 0.278 to 0.301 better, each "
         "bound with 95% confidence."),
        ({"difference": None, "reason": "publish.policy=always"}, ""),
    ],
)  # fmt: skip
def test_the_interval_and_whom_it_was_compared_with_come_after(changes, said):
    assert background(decide(**changes)) == said


def test_both_models_stand_side_by_side_on_the_same_documents():
    assert figure_rows(decide(left_out=["a", "b"]), "v2") == [
        ("split", "documents", "metric", "v2", "v1 (champion before)", "difference"),
        ("test", "25 of 27", "loss (nats a token)", "5.0630", "5.3520", "0.2890 better"),
        ("test", "25 of 27", "token perplexity", "158.06", "211.03", "52.97 better"),
        ("test", "25 of 27", "bits a byte", "1.7500", "1.8500", "0.1000 better"),
        ("validation", "22", "loss (nats a token)", "5.0000", "5.0000", "same"),
        ("validation", "22", "token perplexity", "148.41", "148.41", "same"),
        ("validation", "22", "bits a byte", "1.7000", "1.7000", "same"),
    ]


def test_a_terminal_names_a_split_once_and_has_room():
    lines = list(in_lines(decide(scored_again=True), "v2"))
    assert lines[1:] == [
        "",
        "split                     metric                   v2      v1  difference",
        "test, 25 documents        loss (nats a token)  5.0630  5.3520  0.2890 better",
        "                          token perplexity     158.06  211.03  52.97 better",
        "                          bits a byte          1.7500  1.8500  0.1000 better",
        "validation, 22 documents  loss (nats a token)  5.0000  5.0000  same",
        "                          token perplexity     148.41  148.41  same",
        "                          bits a byte          1.7000  1.7000  same",
    ]


def test_a_figure_that_only_one_of_them_has_is_not_shown():
    splits = {"test": beside(25, (None, 1.75), (None, 1.85)), "validation": beside(22, (None, 1.7), (None, None))}
    rows = figure_rows(decide(promoted=False, splits=splits), "v2")
    assert rows == [
        ("split", "documents", "metric", "v2", "v1 (champion)", "difference"),
        ("test", "25", "bits a byte", "1.7500", "1.8500", "0.1000 better"),
    ]


def test_a_decision_from_before_both_were_kept_shows_what_it_has():
    old = decide().model_dump(include=set(Decision.model_fields) - {"splits", "moved", "scored_again"})
    bounds = "difference -0.301 to -0.278, each bound with 95% confidence"
    reason = f"better by 0.289 nats a token on test against v1; {bounds}"
    decision = Decision.model_validate({**old, "reason": reason})
    assert headline(decision) == "better by 0.289 nats a token, 5.4%, on 25 test documents; promoted"
    assert background(decision) == f"Against v1, the champion before it: {bounds}."
    assert figure_rows(decision, "v2")[1] == (
        "test", "25", "loss (nats a token)", "5.0630", "5.3520", "0.2890 better",
    )  # fmt: skip
    assert moved_rows(decision, "v2") == []


def test_the_documents_that_moved_are_named_and_their_names_act_nowhere():
    moved = [
        Moved(name="notes/" + "x" * 60 + "/march.txt", opening="It was", words=1200, challenger=3.0, opponent=4.25),
        Moved(name="塔.txt", opening=HOSTILE, words=80, challenger=4.0, opponent=3.5),
    ]
    decision = decide(moved=moved)
    lines = "\n".join(in_lines(decision, "v2")).split("The documents of test that moved most, in nats a token:\n")[1]
    assert lines.splitlines() == [
        "document                              words     v2     v1  difference",
        "…xxxxxxxxxxxxx/march.txt: It was      1,200  3.000  4.250  1.250 better",
        "塔.txt: a|b `c` # d \\x1b[31m<script>     80  4.000  3.500  0.500 worse",
    ]
    assert moved_title(decide(moved=moved[:1])).endswith("; none became worse")
    assert moved_title(decide(moved=moved[1:])).endswith("; none became better")
    shown = moved_in_markdown(decision, "v2")
    assert "\x1b" not in shown and "<script>" not in shown
    assert "| 塔.txt: a\\|b \\`c\\` \\# d �\\[31m\\<script\\> | 80 | 4.000 | 3.500 | 0.500 worse |" in shown
