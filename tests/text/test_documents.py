"""Documents: of plain text files, paragraphs, lines or what is between separators; of rows articles or rows."""

import hashlib
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textgen.text import documents
from textgen.text.documents import (
    CONTENT_PERSON,
    CUT_WORDS,
    HEADING_ROWS,
    LINE_FACTOR,
    LONG_WORDS,
    UNSPACED_CHARACTERS,
    Content,
    by_document,
    cut,
    cut_text,
    is_heading,
    is_wikitext,
    lines_of,
    mark_rows,
    parts_of,
    size_in_words,
)

EXAMPLES = 100
SHARED = Path(__file__).parents[3] / "shared"
WIKITEXT = [
    "", " = A = \n", "", " one . \n", " = = B = = \n", " = = = C = = = \n", "", " = D = E = \n", " two \n", "",
]  # fmt: skip


def texts(rows: Sequence[str]) -> list[str]:
    return ["".join(rows[document]) for document in cut(rows)]


def test_a_top_level_heading_begins_an_article():
    assert texts(WIKITEXT) == [" = A = \n one . \n = = B = = \n = = = C = = = \n", " = D = E = \n two \n"]


@pytest.mark.parametrize(
    ("line", "is_one"),
    [(" = A = \n", True), (" = = A = = \n", False), (" = = = A = = = \n", False), ("= A =", True), (" = A \n", False),
     (" A = \n", False), ("", False), (" = \n", False), (" = 1 and k = \n", True), (" = A = \n b = \n", False)],
)  # fmt: skip
def test_a_heading_is_known_by_its_equals_signs(line, is_one):
    assert is_heading(line) == is_one


def test_a_text_that_does_not_begin_with_a_heading_is_cut_at_each_row_with_text():
    rows = ["", "\n", "a\n", "\n", " \n", " = B = \n", "c"]
    assert texts(rows) == ["\na\n\n \n", " = B = \n", "c"]


@pytest.mark.parametrize("heading", ["= Introduction =", " = A = \n"])
@pytest.mark.parametrize("rest", [["one", "two", "= = =", "=====\n", "== Markdown ==", "= a =\nb", "x = y ="], []])
def test_a_table_that_begins_with_one_heading_is_cut_at_each_row(heading, rest):
    assert texts(["", heading, *rest]) == [heading, *rest]


@pytest.mark.parametrize("second", [" = B = \n", " = = B = = \n", "= = = B = = ="])
@pytest.mark.parametrize("between", [0, HEADING_ROWS - 1, HEADING_ROWS])
def test_wikitext_is_known_by_a_second_heading_of_any_level_among_the_next_thousand_rows(second, between):
    rows = ["", " = A = \n", *[" one \n"] * between, second, " two \n"]
    known = between < HEADING_ROWS
    assert is_wikitext(rows) == known
    articles = 2 if second == " = B = \n" else 1
    assert len(texts(rows)) == (articles if known else len(rows) - 1)
    assert len(list(mark_rows(iter(rows)))) == len(rows)


@pytest.mark.parametrize("rows", [[], [""], ["", "\n"]])
def test_a_text_of_nothing_is_one_document(rows):
    assert cut(rows) == [slice(0, len(rows))]


def test_documents_are_all_of_a_text_in_order():
    draw = random.Random(0)
    for _ in range(200):
        rows = [draw.choice(["", "\n", "a b\n", " = T = \n", " = = U = = \n"]) for _ in range(draw.randint(1, 12))]
        documents = cut(rows)
        assert [row for document in documents for row in rows[document]] == rows
        assert all(any(row.strip() for row in rows[document]) for document in documents) or len(documents) == 1


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not on this machine")
def test_the_test_split_of_wikitext_2_has_62_documents():
    file = SHARED / "wikitext" / "wikitext-2-v1" / "test-00000-of-00001.parquet"
    assert len(cut(pyarrow.parquet.read_table(file).column("text").to_pylist())) == 62


def in_pieces(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def documents_of(text: str, document: str, size: int = 1 << 18, cut_words: int | None = None) -> list[str]:
    """Return the documents of a text that comes in pieces of `size` characters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PART_CHARACTERS", size)
        return ["".join(texts) for texts in by_document(cut_text(in_pieces(text, size), document, cut_words))]


SIZES = [*range(1, 12), 1 << 18]
PARAGRAPHS = [
    "\n \nfirst line\nsecond line\n\n",
    "=====\n\t\n\n",
    "a paragraph of one very long line\nand another\n\n",
    "end",
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_paragraph_ends_at_a_blank_line(size, line_end):
    paragraphs = [paragraph.replace("\n", line_end) for paragraph in PARAGRAPHS]
    assert documents_of("".join(paragraphs), "paragraphs", size) == paragraphs


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_line_with_text_is_a_document_and_has_the_blank_ones_after_it(size, line_end):
    lines = ["\n \nfirst\n", "second line\n", "third, and blank ones\n\n \n", "fourth\n", "last"]
    lines = [line.replace("\n", line_end) for line in lines]
    assert documents_of("".join(lines), "line", size) == lines


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("separator", ["\n---\n", "---", "-", "<|end|>", ".*", "\n\n\n", "\x00"])
def test_a_separator_is_in_none_of_the_documents(size, separator):
    texts = ["one", "two\nlines\n-", "", "a longer text", "\n end\n"]
    text = separator.join(texts)
    assert documents_of(text, separator, size) == text.split(separator)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("separator", ["\n---\n", "\r\n---\r\n"])
def test_a_line_end_of_a_separator_is_that_of_the_file(size, separator):
    for line_end in ("\n", "\r\n"):
        text = f"one{line_end}---{line_end}{line_end}two{line_end}---{line_end}---"
        expected = ["one", f"{line_end}two", "---"]
        assert documents_of(text, separator, size) == expected


@pytest.mark.parametrize("size", SIZES)
def test_a_file_is_one_document(size):
    assert documents_of(text := "a\n\n\nb\r\n = c = \n", "file", size) == [text]
    assert documents_of(text, "file", size, cut_words=CUT_WORDS) == [text]


@pytest.mark.parametrize("document", ["file", "line", "paragraphs"])
def test_a_file_without_text_is_no_document(document):
    assert documents_of("", document) == []


def words(count: int, between: str = " ") -> str:
    return between.join(f"w{number}" for number in range(count))


@pytest.mark.parametrize("size", [1009, 1 << 18])
def test_a_long_file_is_cut_at_the_first_blank_line_after_so_many_words(size):
    paragraphs = [words(90) + ("\r\n\r\n" if number % 2 else "\n\n") for number in range(60)]
    found = documents_of("".join(paragraphs), "file", size, cut_words=CUT_WORDS)
    per_document = -(-CUT_WORDS // 90)
    assert found == ["".join(paragraphs[n : n + per_document]) for n in range(0, 60, per_document)]


@pytest.mark.parametrize("size", [1009, 1 << 18])
def test_a_long_file_without_blank_lines_is_cut_at_a_line_end(size):
    lines = [words(90) + "\n" for _ in range(60)]
    found = documents_of("".join(lines), "file", size, cut_words=CUT_WORDS)
    per_document = -(-(CUT_WORDS * LINE_FACTOR) // 90)
    assert found == ["".join(lines[n : n + per_document]) for n in range(0, 60, per_document)]


@pytest.mark.parametrize("size", [100, 1009, 4096, 1 << 18])
@pytest.mark.parametrize("length", [1, 40, 120])
def test_a_long_line_is_cut_at_white_space_and_never_within_a_word(size, length):
    text = " ".join(f"{number:0{length}}" for number in range(9000))
    found = documents_of(text, "file", size, cut_words=CUT_WORDS)
    assert "".join(found) == text and len(found) > 2
    assert [word for document in found for word in document.split()] == text.split()
    assert max(len(document.split()) for document in found) <= 2 * CUT_WORDS * LINE_FACTOR


CHINESE = "天地玄黄宇宙洪荒。日月盈昃辰宿列张\uff01" * 2
UNSPACED_SENTENCES = [CHINESE, "สวัสดีครับ?" * 4, "吾輩は猫である。" * 5]


@pytest.mark.parametrize("size", [4096, 1 << 18])
@pytest.mark.parametrize(
    ("sentence", "between"),
    [*((text, between) for text in UNSPACED_SENTENCES for between in ("\n", "\n\n", "", " ")), ("no.space." * 5, "")],
)
def test_a_long_file_without_spaces_between_words_is_cut_after_sentences(size, sentence, between):
    text = between.join([sentence] * 3000)
    found = documents_of(text, "file", size, cut_words=250)
    assert "".join(found) == text
    longest = 250 * UNSPACED_CHARACTERS * LINE_FACTOR
    assert max(map(len, found)) <= 2 * longest and sorted(map(len, found))[1] >= longest / 5
    assert all(one.rstrip()[-1] in ".?\u3002\uff01" for one in found)


@pytest.mark.parametrize("size", [4096, 1 << 18])
def test_a_long_line_of_nothing_but_letters_is_cut_after_so_many(size):
    found = documents_of("ab" * 200_000, "file", size, cut_words=250)
    assert "".join(found) == "ab" * 200_000 and max(map(len, found)) <= 8000


@pytest.mark.parametrize("text", ["", "a b\n", "https://" + "x" * 900, "Übung naïve Привет мир 한국어 띄어쓰기 हिन्दी"])
def test_text_with_spaces_is_as_long_as_its_words(text):
    assert size_in_words(text) == len(text.split())


@pytest.mark.parametrize("count", [LONG_WORDS, LONG_WORDS + 1])
def test_a_file_is_long_above_two_thousand_words(count):
    assert (len(documents_of(words(count, "\n\n"), "file", cut_words=CUT_WORDS)) > 1) == (count > LONG_WORDS)


@pytest.mark.parametrize("size", [1, 3, 1 << 18])
def test_lines_are_those_of_the_file(size):
    text = "a\r\n\n b\u2028c\x0bd\re\n\nend"
    assert list(lines_of(in_pieces(text, size))) == re.findall(r"[^\n]*\n|[^\n]+", text)


def test_the_content_of_a_document_is_the_hash_of_its_words_whatever_the_pieces():
    text = " one  two\r\n\tthree\u2003naïve 塔\n"
    expected = hashlib.blake2b("one two three naïve 塔".encode(), digest_size=8, person=CONTENT_PERSON)
    for size in range(1, len(text) + 1):
        content = Content()
        for part in parts_of(text) if size == len(text) else in_pieces(text, size):
            content.add(part if isinstance(part, str) else part.text)
        assert content.hash == int.from_bytes(expected.digest(), "big")
        assert (content.words, content.bytes) == (5, len(text.encode()))


ANY_TEXT = st.lists(
    st.sampled_from(["a", "bc ", " ", "\n", "\r\n", "\n\n", "\r", "塔", "-", "\x1c", "\u2028"]), max_size=40
)
ANY_DOCUMENT = st.sampled_from(["file", "line", "paragraphs", "-", "\n", "\n\n", "--", "a-"])


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None)
@given(ANY_TEXT.map("".join), ANY_DOCUMENT, st.integers(1, 9), st.sampled_from([None, CUT_WORDS]))
def test_documents_do_not_depend_on_the_pieces_and_are_all_of_the_text(text, document, size, cut_words):
    found = documents_of(text, document, size, cut_words)
    of_one_piece = documents_of(text, document, cut_words=cut_words)
    assert [one.split() for one in found] == [one.split() for one in of_one_piece]
    if document in ("file", "line", "paragraphs"):
        assert "".join(found) == text
        assert document == "file" or all(one.split() for one in found) or len(found) == 1
    elif "\n" not in document:
        assert found == text.split(document)
