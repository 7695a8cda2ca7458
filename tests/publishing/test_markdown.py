"""Foreign text in Markdown: none of it is markup, as a reader of CommonMark sees it."""

import pytest

from textgen.publishing.markdown import code, inline, quote, table, without_fences


def test_no_character_of_a_quotation_is_markup():
    assert quote("a *b*\n<i>\x00# |") == "a \\*b\\*\n> \\<i\\>�\\# \\|"


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("- a", "\\- a"),
        ("a\n===", "a\n> \\==="),
        ("12. a", "12\\. a"),
        ("a - b 1.5", "a - b 1.5"),
        ("+ 1", "\\+ 1"),
        ("---", "\\---"),
        ("-0.5", "-0.5"),
    ],
)
def test_no_line_of_a_quotation_begins_a_list_or_a_heading(text, quoted):
    assert quote(text) == quoted


def test_a_text_in_a_line_has_no_line_ends():
    assert inline("a\n\n# b\u2028<c>") == "a \\# b \\<c\\>"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("plain", "`plain`"),
        ("a`b", "`` a`b ``"),
        ("``` <img>", "```` ``` <img> ````"),
        ("a\nb\x1b", "`a b�`"),
    ],
)
def test_code_cannot_be_left_by_its_text(text, written):
    assert code(text) == written


def test_a_text_between_backticks_has_none():
    assert without_fences("a`<img>`\nb") == "a'<img>' b"


def test_a_cell_is_one_cell():
    assert table(("a", "b"), [("x|y", "1\n2"), (code("p|q"), "\\|")]) == (
        "| a | b |\n| --- | --- |\n| x\\|y | 1 2 |\n| `p\\|q` | \\| |"
    )
