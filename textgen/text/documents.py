"""The documents of a text: articles where it is WikiText, otherwise rows, and how much each holds."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """A piece of a document: a whole document, unless it is so long that it is read in several pieces."""

    text: str
    begins: bool  # whether a document begins here


def cut(rows: Sequence[str]) -> list[slice]:
    """Return the documents of a text, in order, as slices of its rows; together they are all of its rows.

    Where the first row with text is a top-level heading, each such heading begins a document, an article. Otherwise
    each row with text does. Rows without text belong to the document before them.
    """
    starts = [number for number, row in enumerate(rows) if row.strip()]
    if is_wikitext(rows):
        starts = [number for number in starts if is_heading(rows[number])]
    return [slice(start, end) for start, end in pairwise([0, *starts[1:], len(rows)])]


def is_wikitext(rows: Sequence[str]) -> bool:
    """Return whether the first row with text is a top-level heading."""
    return is_heading(next((row for row in rows if row.strip()), ""))


def is_heading(line: str) -> bool:
    """Return whether a line is a top-level heading, ` = Title = `, by the rule of wikitext_document_level on the Hub.

    The rule takes a few lines of WikiText that are formulas for headings: its 60 test articles are 62 documents.
    """
    line = line.replace("= = =", "===").replace("= =", "==").strip()
    return line.startswith("= ") and line.endswith(" =") and "\n" not in line


def count(rows: Sequence[str], row_tokens: Sequence[int]) -> dict[str, Tensor]:
    """Return the `tokens`, the `words` between white space and the `bytes` in UTF-8 of each document: int64 [D]."""
    documents = cut(rows)
    return {
        "tokens": torch.tensor([sum(row_tokens[document]) for document in documents]),
        "words": torch.tensor([sum(len(row.split()) for row in rows[document]) for document in documents]),
        "bytes": torch.tensor([sum(len(row.encode()) for row in rows[document]) for document in documents]),
    }
