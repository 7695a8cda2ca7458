"""Text of somebody else's acts on no terminal, and a long value is shown short."""

import logging
import sys

import pytest

from textgen.terminal import (
    PlainFormatter,
    brief,
    bytes_in_words,
    columns,
    counted,
    one_line,
    printable,
    say,
    seconds_in_words,
)


@pytest.mark.parametrize("text", ["plain", "naïve 塔 ▸ 🙂", "two\nlines\tand a tab", "[b]bold[/b] :smile: `x`"])
def test_text_that_does_not_act_is_as_it_was(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("over\rwritten\b", "over\\rwritten\\x08"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u202eb\u2028c", "a\\u202eb\\u2028c"),
        ("\udcff", "\\udcff"),
    ],
)
def test_a_character_that_acts_is_its_escape(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(("number", "shown"), [(0, "0 words"), (1, "1 word"), (1200, "1,200 words")])
def test_one_of_a_thing_is_not_several(number, shown):
    assert counted(number, "word") == shown


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.0 kB"), (9_949, "9.9 kB"), (9_999, "10 kB"),
     (999_499, "999 kB"), (999_500, "1.0 MB"), (3_400_000, "3.4 MB"), (120 * 10**9, "120 GB"), (5 * 10**18, "5000 PB")],
)  # fmt: skip
def test_a_size_has_a_unit_and_two_or_three_digits(size, shown):
    assert bytes_in_words(size) == shown


def test_a_log_line_does_not_act():
    record = logging.LogRecord("textgen", logging.INFO, "file", 1, "read %s", ("\x1b]0;title\x07",), None)
    assert PlainFormatter("%(message)s").format(record) == "read \\x1b]0;title\\x07"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 seconds"), (1, "1.0 seconds"), (12.3, "12 seconds"), (99.4, "99 seconds"), (99.6, "1.7 minutes"),
     (3600, "60 minutes"), (7200, "2.0 hours"), (90 * 3600, "90 hours")],
)  # fmt: skip
def test_a_time_has_a_unit_and_two_digits(seconds, shown):
    assert seconds_in_words(seconds) == shown


@pytest.mark.parametrize(
    ("variables", "bold"), [({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_a_result_is_bold_where_the_terminal_has_that(variables, bold, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    say("verdict", bold=True)
    assert capsys.readouterr().out == ("\x1b[1mverdict\x1b[0m\n" if bold else "verdict\n")


@pytest.mark.parametrize(("terminal", "printed"), [(True, "\\x1b[1m\n"), (False, "\x1b[1m\n")])
def test_a_result_acts_on_no_terminal_and_is_whole_in_a_pipe(terminal, printed, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    say("\x1b[1m")
    assert capsys.readouterr().out == printed


def endless() -> list[object]:
    value: list[object] = []
    value.append(value)
    return value


def test_a_long_value_is_shown_short():
    for value in ("x" * 10**6, list(range(10**6)), 1 << 10**6, {"a": [["x" * 999] * 9] * 9}, endless()):
        assert len(brief(value)) <= 200


@pytest.mark.parametrize("value", ["many", 2.5, True, None, {"a": [1]}])
def test_a_short_value_is_shown_as_it_is(value):
    assert brief(value) == repr(value)


def test_a_foreign_message_becomes_one_line():
    assert one_line("a\n  b\x1b") == "a b\\x1b"
    assert len(one_line("long " * 1000)) <= 300


def test_a_table_is_aligned_by_the_columns_that_a_terminal_takes():
    rows = [
        ("name", "words", "note"),
        ("塔塔", "7", "two columns each"),
        ("e\u0301te", "1,200", "accents take none"),
    ]
    assert list(columns(rows, right=(1,))) == [
        "name  words  note",
        "塔塔      7  two columns each",
        "e\u0301te   1,200  accents take none",
    ]
