"""Documents: how plain text is cut into them, which rows begin one, and the content by which one is known."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby, islice, pairwise
from typing import NamedTuple

PART_CHARACTERS = 1 << 18  # of a piece of a document, whatever the document's size
WAYS_TO_CUT = ("file", "paragraphs", "line")  # of `data.document`; any other value is a separator
LONG_WORDS = 2000  # plain text of more words is cut where the splits would be too small
CUT_WORDS = 1000  # after about so many words, at the next blank line,
LINE_FACTOR = 2  # or, where there is none, at the next line end after so many times as many
UNSPACED_CHARACTERS = 4  # count as a word in scripts that have no spaces between words, and
UNSPACED_RUN = 1000  # where so many characters have no white space between them
UNSPACED = re.compile(  # Thai, Lao, Tibetan, Burmese, Khmer, Japanese, Chinese
    "[\u0e00-\u109f\u1780-\u17ff\u3001-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff9f\U00020000-\U0003ffff]+"
)
SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f]+[\"')\u2019\u201d\u300d\u300f\uff09]*")  # with the quotes after it
HEADING_ROWS = 1000  # after WikiText's first heading, among which a second one is
CONTENT_PERSON = b"textgen split 1"  # salts the hash that splits: with another one, every document moves


class Part(NamedTuple):
    """A piece of a document: a whole document, unless it is so long that it is read in several pieces."""

    text: str
    begins: bool  # whether a document begins here


def size_in_words(text: str) -> float:
    """Return the words of a text, or its characters over UNSPACED_CHARACTERS where no spaces are between words.

    These are characters of Chinese, Japanese, Thai and the like, and runs of UNSPACED_RUN without white space. The
    larger of the two counts, so that a text with spaces is as long as its words.
    """
    words = text.split()
    runs = sum(len(word) for word in words if len(word) >= UNSPACED_RUN) if len(text) >= UNSPACED_RUN else 0
    unspaced = 0 if text.isascii() else sum(map(len, UNSPACED.findall(text)))
    return max(len(words), max(runs, unspaced) / UNSPACED_CHARACTERS)


def utf8_length(text: str) -> int:
    """Return how many bytes a text has in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


class WordCount:
    """The words of a document, between white space, and its bytes in UTF-8, as its pieces come."""

    def __init__(self) -> None:
        self.words = self.bytes = 0
        self._inside = False  # whether the text so far ends within a word

    def add(self, text: str) -> str:
        """Count the next piece and return its words, one space apart, with a space before a word that begins."""
        words = " ".join(text.split())
        if words:
            goes_on = self._inside and not text[0].isspace()
            if self.words and not goes_on:
                words = f" {words}"
            self.words += words.lstrip(" ").count(" ") + 1 - goes_on
        if text:
            self._inside = not text[-1].isspace()
            self.bytes += utf8_length(text)
        return words


class Content(WordCount):
    """What identifies a document: its words, one space apart, as a 64-bit hash."""

    def __init__(self) -> None:
        super().__init__()
        self._hash = hashlib.blake2b(digest_size=8, person=CONTENT_PERSON)

    def add(self, text: str) -> str:
        """Take in the next piece of the document."""
        words = super().add(text)
        self._hash.update(words.encode())
        return words

    @property
    def hash(self) -> int:
        return int.from_bytes(self._hash.digest(), "big")


def parts_of(text: str, begins: bool = True) -> Iterator[Part]:
    """Yield a document's text in parts of PART_CHARACTERS."""
    for start in range(0, max(1, len(text)), PART_CHARACTERS):
        yield Part(text[start : start + PART_CHARACTERS], begins and start == 0)


def lines_of(pieces: Iterable[str], longest: int | None = None) -> Iterator[str]:
    """Yield the lines of a text with their ends, line feeds alone; lines over about `longest` come in pieces."""
    rest: list[str] = []
    for piece in pieces:
        *whole, last = piece.split("\n")
        if whole:
            yield "".join([*rest, whole[0], "\n"])
            yield from (f"{line}\n" for line in whole[1:])
            rest = []
        rest.append(last)
        if longest is not None and len(last) >= longest:
            yield "".join(rest)
            rest = []
    if last := "".join(rest):
        yield last


def cut_text(pieces: Iterable[str], document: str, cut_words: int | None = None) -> Iterator[Part]:
    """Yield the documents of plain text, in parts.

    Args:
        pieces: The text, in pieces of PART_CHARACTERS.
        document: `file`, `paragraphs`, `line`, or the separator between documents, which is in none of them.
        cut_words: After how many words a file of more than LONG_WORDS is cut, where a document is a file. Words are
            counted by `size_in_words`: in Chinese, Japanese or Thai characters count too.
    """
    match document:
        case "file":
            return _whole(pieces) if cut_words is None else _cut_long(pieces, cut_words)
        case "line":
            return _cut_lines(_whole_lines(pieces), lambda after_blank, words: True)
        case "paragraphs":
            return _cut_lines(_whole_lines(pieces), lambda after_blank, words: after_blank)
    return _cut_at(pieces, document)


def _whole(pieces: Iterable[str]) -> Iterator[Part]:
    for number, piece in enumerate(pieces):
        yield Part(piece, number == 0)


def _whole_lines(pieces: Iterable[str]) -> Iterator[tuple[str, bool]]:
    for line in lines_of(pieces, PART_CHARACTERS):
        yield line, False


def _cut_long(pieces: Iterable[str], cut_words: int) -> Iterator[Part]:
    """Yield a file as one document, or, if it is long, cut at blank lines, else at line ends, else at white space.

    Where there is no white space either, it is cut after sentences, else after so many characters.
    """
    pieces, first, words = iter(pieces), list[str](), 0.0
    for piece in pieces:
        first.append(piece)
        if (words := words + size_in_words(piece)) > LONG_WORDS:
            lines = lines_of(chain(first, pieces), PART_CHARACTERS)
            yield from _cut_lines(
                chain.from_iterable(_shorter(line, cut_words) for line in lines),
                lambda after_blank, words: words >= cut_words * (1 if after_blank else LINE_FACTOR),
            )
            return
    yield from _whole(first)


def _shorter(line: str, cut_words: int) -> Iterator[tuple[str, bool]]:
    """Yield a line in pieces of `cut_words` words, if it has more than LINE_FACTOR times as many.

    Each has whether a document may begin after it. The last word of a line that comes in pieces is a piece of its own:
    the next one may go on with it.
    """
    word = "" if len(line) < PART_CHARACTERS or line[-1].isspace() else line.rsplit(maxsplit=1)[-1]
    whole = line[: len(line) - len(word)]
    if len(whole) <= (most := cut_words * LINE_FACTOR) or (size := size_in_words(whole)) <= most:
        pieces = [whole]
    else:
        count = max(1, int(cut_words * len(whole.split()) / size))  # fewer where words are long
        pieces = re.findall(rf"(?:\s*\S+){{1,{count}}}\s*", whole)
    for piece in filter(None, (*pieces, word)):
        *starts, last = _within_words(piece, cut_words)
        yield from ((start, True) for start in starts)
        yield last, last[-1].isspace()


def _within_words(text: str, cut_words: int) -> list[str]:
    """Return a text of few words in pieces, if it is too long: cut after sentences, else after so many characters."""
    shortest, pieces, start = cut_words * UNSPACED_CHARACTERS, [], 0
    longest = shortest * LINE_FACTOR
    if len(text) > longest and size_in_words(text) > cut_words * LINE_FACTOR:
        while len(text) - start > longest:
            found = SENTENCE_END.search(text, start + shortest, start + longest)
            end = found.end() if found else start + longest
            pieces.append(text[start:end])
            start = end
    return [*pieces, text[start:]]


def _cut_lines(lines: Iterable[tuple[str, bool]], begins: Callable[[bool, float], bool]) -> Iterator[Part]:
    """Yield documents that are cut before lines with text.

    `begins(after_blank, words)` says whether one begins at such a line, by whether the line before is blank, and by the
    words of the document so far. A line may come in pieces, each with whether a document may begin after it too.
    """
    kept: list[str] = []
    size, words = 0, 0.0
    first, after_blank, blank, at_place = True, False, True, True  # `blank`: the line so far, of which this is a piece
    for line, is_place in lines:
        count = size_in_words(line)
        if count and words and at_place and begins(after_blank and blank, words):
            yield Part("".join(kept), first)
            kept, size, words, first = [], 0, 0.0, True
        elif size >= PART_CHARACTERS:
            yield Part("".join(kept), first)
            kept, size, first = [], 0, False
        kept.append(line)
        size, words = size + len(line), words + count
        blank = blank and not count
        if line.endswith("\n"):
            after_blank, blank = blank, True
        at_place = blank or is_place
    if kept:
        yield Part("".join(kept), first)


def _cut_at(pieces: Iterable[str], separator: str) -> Iterator[Part]:
    """Yield documents that are cut at each `separator`, a line end of which is `\\n` or `\\r\\n` in the text."""
    pattern = re.compile(r"\r?\n".join(map(re.escape, re.split(r"\r?\n", separator))))
    rest, begins, reach = "", True, len(separator) + separator.count("\n") - 1
    for piece in pieces:
        *whole, rest = pattern.split(rest + piece)
        for text in whole:
            yield from parts_of(text, begins)
            begins = True
        if (ready := len(rest) - reach) > 0:  # what is left may end with the beginning of a separator
            yield Part(rest[:ready], begins)
            rest, begins = rest[ready:], False
    yield Part(rest, begins)


def by_document(parts: Iterable[Part]) -> Iterator[Iterator[str]]:
    """Yield the texts of the parts of each document; each is to be read before the next is asked for."""
    number = 0

    def number_of(part: Part) -> int:
        nonlocal number
        number += part.begins
        return number

    for _, document in groupby(parts, number_of):
        yield (part.text for part in document)


def first_words(texts: Iterable[str], count: int) -> list[str]:
    """Return the first words of a document, `count` at most."""
    text = ""
    for more in texts:
        text += more
        if len(words := text.split(maxsplit=count)) > count:
            return words[:count]
    return text.split()


def mark_rows(rows: Iterable[str]) -> Iterator[Part]:
    """Yield each row of a text as a part, and whether a document begins there.

    In WikiText's lines, as `is_wikitext` knows them, each top-level heading begins a document, an article. Otherwise
    each row with text does. Rows without text belong to the document before them, those at the beginning to the first.
    """
    rows, first = iter(rows), []
    for row in rows:
        first.append(row)
        if row.strip():
            break
    if first and is_heading(first[-1]):
        first += islice(rows, HEADING_ROWS)
    wikitext, before = is_wikitext(first), True  # `before`: no row with text was there yet
    for number, row in enumerate(chain(first, rows)):
        has_text = bool(row.strip())
        yield Part(row, number == 0 or (has_text and not before and (not wikitext or is_heading(row))))
        before = before and not has_text


def cut(rows: Sequence[str]) -> list[slice]:
    """Return the documents of a text, in order, as slices of its rows, by the rule of `mark_rows`."""
    starts = [number for number, part in enumerate(mark_rows(rows)) if part.begins]
    return [slice(start, end) for start, end in pairwise([*starts, len(rows)])] or [slice(0, 0)]


def is_wikitext(rows: Iterable[str]) -> bool:
    """Return whether a text is WikiText's lines.

    Its first row with text is a top-level heading, and a heading of any level is among the HEADING_ROWS after it. A
    table of other texts may begin with a row that looks like a heading.
    """
    rows = iter(rows)
    first = next((row for row in rows if row.strip()), "")
    return is_heading(first) and any(map(is_any_heading, islice(rows, HEADING_ROWS)))


def is_heading(line: str) -> bool:
    """Return whether a line is a top-level heading, ` = Title = `, by the rule of wikitext_document_level on the Hub.

    The rule takes a few lines of WikiText that are formulas for headings: its 60 test articles are 62 documents.
    """
    line = line.replace("= = =", "===").replace("= =", "==").strip()
    return line.startswith("= ") and line.endswith(" =") and "\n" not in line


def is_any_heading(line: str) -> bool:
    """Return whether a line is a heading of any level, as ` = = Title = = `."""
    line = line.strip()
    return line.startswith("= ") and line.endswith(" =") and "\n" not in line and bool(line.strip("= "))
