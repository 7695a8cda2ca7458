"""How far work is: one bar on a terminal and nothing left of it, elsewhere a line every half minute."""

import logging
import os
import sys
from types import SimpleNamespace

import pytest

from tests.screen import open_terminal, read_terminal, text_on_screen
from textgen import bar
from textgen.bar import BYTE, Bar, Console


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """Return the clock that bars read; it stands still until a test sets it."""
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(bar, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    return clock


def work(progress: Bar, clock: SimpleNamespace, updates: int) -> None:
    """Do as many tenths of 1,000 units, which take ten seconds each."""
    for _ in range(updates):
        clock.seconds += 10
        progress.update(100, words="loss 3.210")


@pytest.mark.parametrize("dumb", [False, True], ids=["no terminal", "TERM=dumb"])
def test_without_a_terminal_a_line_says_every_half_minute_how_far_the_work_is(dumb, clock, monkeypatch, caplog, capsys):
    caplog.set_level(logging.INFO)
    if dumb:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        monkeypatch.setenv("TERM", "dumb")
    with Bar("train", 1000, "step", done=100) as progress:
        work(progress, clock, updates=7)
    assert caplog.messages == [
        "train: 400 of 1,000 steps, loss 3.210, 60 seconds left",
        "train: 700 of 1,000 steps, loss 3.210, 30 seconds left",
    ]
    assert "%|" not in capsys.readouterr().err


def test_work_that_nobody_is_to_see_says_nothing(clock, caplog):
    caplog.set_level(logging.INFO)
    with Bar("", 1000, "window", shown=False) as progress:
        work(progress, clock, updates=9)
    assert caplog.messages == []


def test_bytes_have_a_unit():
    with Bar("tokenize train", 10_000_000, BYTE) as progress:
        progress.update(2_500_000)
        assert progress.in_words().startswith("tokenize train: 2.5 MB of 10 MB, ")


@pytest.mark.parametrize("columns", [100, 0], ids=["100 columns", "a width that is not known"])
def test_a_terminal_has_one_bar_and_whole_lines_above_it_and_no_bar_at_the_end(columns, monkeypatch):
    record = logging.LogRecord("textgen", logging.INFO, "file", 1, "a line of the log", (), None)
    monkeypatch.setenv("TERM", "xterm")
    with open_terminal(columns) as (screen, program):
        with os.fdopen(program, "w") as stderr, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stderr)
            console = Console()
            with Bar("train", 10, "step") as progress:
                progress.update(5, words="loss 3.210")
                console.emit(record)
            console.emit(record)
        written = read_terminal(screen)
    assert "train:  50%" in written and "5/10" in written and "loss 3.210" in written
    assert text_on_screen(written) == ["a line of the log", "a line of the log", ""]
