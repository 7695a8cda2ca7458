"""The summary of a run: foreign text in it is shown as it is and acts on no terminal."""

import shlex
import shutil
from typing import Any

import pytest

from flows.train_flow import summarize

HOSTILE = "/t/a[/b]c[bold]d :smile: \x1b[31mred\x1b]0;title\x07"
SHOWN = "/t/a[/b]c[bold]d :smile: \\x1b[31mred\\x1b]0;title\\x07"


def result(text: str) -> dict[str, Any]:
    """Return what a run leaves, with `text` wherever somebody else's words are."""
    speed: dict[str, Any] = {"seconds": {"train": 1.0}, "tokens_per_second": 1.0, "mfu": 0.5, "memory_peak_bytes": 1}
    figures = {"loss_nats": 1.0, "token_perplexity": 2.7, "word_perplexity": None, "bits_per_byte": 1.5}
    return {
        "config": {"storage": {"root": "data"}},
        "raw": {"name": "files"},
        "stages": {"fetch": {"seconds": 1.0, "cached": False}},
        "checkpoint": {"speed": speed, "steps": 900, "config": {"tokenizer": {"kind": "bpe"}}},
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
    assert printed.count(SHOWN) == 6


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


FIGURES = {"loss_nats": 3.1, "token_perplexity": 22.2, "word_perplexity": 22789100439.0166, "bits_per_byte": None}


def printed_of(capsys, **changes: Any) -> list[str]:
    """Return the lines of the summary of a run that was compared with no other, some parts of which are `changes`."""
    run = {**result("text"), "metrics": {"test": FIGURES}}
    run["published"] = {
        **run["published"], "path": "data/models/textgen/v1", "reason": "publish.policy=never",
        "samples": [{"prompt": "It's the first words of", "continuation": " a document\nof two lines"}],
    }  # fmt: skip
    for name, change in changes.items():
        run[name] = {**run[name], **change} if isinstance(change, dict) else change
    summarize(run)
    return capsys.readouterr().out.splitlines()


def test_the_verdict_comes_first_and_a_prompt_is_told_from_its_continuation(capsys):
    lines = printed_of(capsys)
    assert lines[0] == "textgen v1: promoted (publish.policy=never); the champion"
    assert "  It's the first words of ▸ a document" in lines
    assert "    of two lines" in lines


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({}, ("test", "3.1000", "22.20", "-")),
        ({"raw": {"name": "Salesforce--wikitext"}}, ("test", "3.1000", "22.20", "2.3e+10", "-")),
        ({"checkpoint": {"config": {"tokenizer": {"kind": "word"}}}}, ("test", "3.1000", "22.20", "2.3e+10", "-")),
    ],
    ids=["bpe", "WikiText", "words"],
)
def test_word_perplexity_is_shown_where_words_are_the_measure(changes, row, capsys):
    assert tuple(next(line for line in printed_of(capsys, **changes) if line.startswith("test ")).split()) == row


def test_a_run_that_did_nothing_says_so_first(capsys):
    lines = printed_of(capsys, stages={"fetch": {"seconds": 0.1, "cached": True}})
    assert lines[0] == "Nothing to do: text, training settings and code versions are those of textgen v1."
    assert "Stages: fetch cached" in lines
    published = {"promoted": False, "reason": "it is worse"}
    cached = {"fetch": {"seconds": 0.1, "cached": True}}
    said, *_ = printed_of(capsys, stages=cached, champion="v2", published=published)
    assert said.endswith("the gate does not decide twice; `textgen models promote v1 --name textgen` promotes it.")
    assert not [line for line in lines if line.startswith("Training: ")]


@pytest.mark.parametrize(
    ("champion", "root", "path", "commands"),
    [
        ("v1", "data", "data/models/textgen/v1", ["textgen@champion"]),
        ("v3", "data", "data/models/textgen/v1", ["textgen@champion", "textgen@v1"]),
        (None, "data", "data/models/textgen/v1", ["textgen@v1"]),
        ("v1", "/a b", "/a b/models/textgen/v1", ["textgen@champion --root '/a b'"]),
        ("v1", "s3://a/b", "data/s3--a--b/models/textgen/v1", ["textgen@champion --root s3://a/b"]),
    ],
)
def test_what_to_do_next_is_a_command_that_can_be_pasted(champion, root, path, commands, capsys):
    config = {"storage": {"root": root}}
    lines = printed_of(capsys, champion=champion, published={"path": path}, config=config)
    typed = [line.removeprefix("Next:").strip() for line in lines[lines.index(f"Model: {path}") + 1 :]]
    for line, model in zip(typed, commands, strict=True):
        python, *arguments = shlex.split(line, comments=True)
        assert shutil.which(python)
        assert arguments == [*shlex.split(f"-m textgen generate {model} --prompt"), "It's the first words"]


def test_a_prompt_that_looks_like_an_option_is_none_when_pasted(capsys):
    lines = printed_of(capsys, published={"samples": [{"prompt": "--x of it", "continuation": ""}]})
    assert shlex.split(lines[-1].removeprefix("Next:"))[-1].startswith("--prompt=--x")
