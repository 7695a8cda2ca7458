"""Documents: articles of WikiText, rows of any other text, and together the whole of it."""

import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet
import pytest

from textgen.text.documents import cut, is_heading

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
