"""The summary of a run: foreign text in it is shown as it is and acts on no terminal."""

from typing import Any

import pytest

from flows.train_flow import summarize

HOSTILE = "/t/a[/b]c[bold]d :smile: \x1b[31mred\x1b]0;title\x07"
SHOWN = "/t/a[/b]c[bold]d :smile: \\x1b[31mred\\x1b]0;title\\x07"
SPLIT = {
    "documents": 1, "words": 1, "bytes": 1, "overlap": 0.0,
    "longest": {"name": "a", "words": 1}, "shortest": {"name": "a", "words": 1},
}  # fmt: skip


def result(text: str) -> dict[str, Any]:
    """Return what a run leaves, with `text` wherever somebody else's words are."""
    speed = {"seconds": {"train": 1.0}, "tokens_per_second": 1.0, "mfu": 0.5, "memory_peak_bytes": 1}
    figures = {"loss_nats": 1.0, "token_perplexity": 2.7, "word_perplexity": None, "bits_per_byte": 1.5}
    return {
        "raw": {
            "key": "raw", "name": "files", "source": {}, "splits": {}, "reading": {"files": {}, "left_out": {text: 1}},
        },
        "text": {
            "key": "report", "raw_key": "raw",
            "splits": {split: SPLIT for split in ("train", "validation", "test")},
        },
        "stages": {"fetch": {"seconds": 1.0, "cached": False}},
        "checkpoint": {"speed": speed},
        "metrics": {"test": figures},
        "tokenizer": None,
        "drift": {"key": "drift", "raw_key": "raw", "verdict": "not compared", "champion": "v1", "reasons": [text]},
        "published": {
            "key": "1", "checkpoint_sha256": "1", "tokens_key": "1", "raw_sha256": {}, "bits_per_byte": None,
            "sha256": {}, "name": "textgen", "version": "v1", "promoted": True, "reason": text, "path": text,
            "samples": [{"prompt": text, "continuation": text}],
        },
        "champion": "v1",
    }  # fmt: skip


@pytest.mark.parametrize("columns", ["80", "200"])
def test_foreign_text_is_shown_as_it_is_and_does_not_act(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    summarize(result(HOSTILE))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert printed.count(SHOWN) == 7


def test_the_documents_that_moved_act_on_no_terminal(capsys):
    figures = {"loss_nats": 1.0, "bits_per_byte": None}
    decision = {
        "promoted": True, "reason": f"better against v1; {HOSTILE}", "opponent": "v1", "unit": "nats a token",
        "documents": 1, "challenger": 1.0, "champion": 2.0, "difference": -1.0,
        "splits": {"test": {"documents": 1, "challenger": figures, "opponent": {**figures, "loss_nats": 2.0}}},
        "moved": [{"name": HOSTILE[-12:], "opening": HOSTILE, "words": 1, "challenger": 1.0, "opponent": 2.0}],
    }  # fmt: skip
    run = result("text")
    summarize({**run, "published": {**run["published"], "decision": decision}})
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\x07" not in printed
    assert f"Against v1, the champion before it: {SHOWN}.\n" in printed
    assert "\ntest, 1 document  loss (nats a token)  1.0000  2.0000  1.0000 better\n" in printed
