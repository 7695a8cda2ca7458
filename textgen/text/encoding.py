"""Documents become ids, in memory that does not grow with them: long ones are cut where it changes no id."""

import os
import re
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from textgen.cores import usable_cores
from textgen.errors import InputError
from textgen.text.documents import Part, by_document, lines_of, utf8_length

END_OF_TEXT = "<|endoftext|>"
END_OF_ROW = "<eos>"
UNKNOWN = "<unk>"

WINDOW = 2**18  # characters: what a longer text is cut into
LONGEST_PIECE = 2**16  # characters: a pre-token that is longer is cut
CONTEXT = 256  # characters on each side of a cut in which it is checked
BATCH_BYTES = 2**17  # of text, tokenized by one thread at once
PARALLELISM = "TOKENIZERS_PARALLELISM"  # an environment variable: whether a call of tokenizers runs on every core
PIECE_BYTES = 64  # that even an empty text counts for in a batch
TRIES = 8
WORD_END = re.compile(r"\S(?=[ \t\r\n])")


NO_SPACE = re.compile(r"[\x1c-\x1f]")  # white space to Python, and none to Unicode and the tokenizers
BETWEEN_SPACES = re.compile(r"[\S\x1c-\x1f]+")


def words_between_spaces(text: str) -> list[str]:
    """Return the words of a text as the word tokenizer finds them: between Unicode's white space."""
    return BETWEEN_SPACES.findall(text) if NO_SPACE.search(text) else text.split()


def ends_in_space(text: str) -> bool:
    """Return whether a text ends with Unicode's white space."""
    return text[-1:].isspace() and not NO_SPACE.match(text[-1])


class Encoded(NamedTuple):
    """The ids [N] of some of the text, and where in them documents end, D places from 0 to N."""

    ids_N: np.ndarray  # int32
    ends_D: np.ndarray  # int64; equal neighbours are a document without tokens
    forced_cuts: int  # pre-tokens that were cut because they are longer than `LONGEST_PIECE`
    texts: int  # documents, or lines of them, that end here and were tokenized each on its own


class Piece(NamedTuple):
    """A text that is tokenized in one call."""

    text: str
    first: bool  # whether a unit of text (a document, or a line of one) begins with it
    last: bool  # whether that unit ends with it
    forced: bool = False  # whether a pre-token is cut at its end

    @property
    def whole(self) -> bool:
        return self.first and self.last


class Batch(NamedTuple):
    """Pieces that are tokenized at once, and the numbers of pieces before which documents end."""

    pieces: list[Piece]
    ends: list[int]


class Affixes(NamedTuple):
    """The ids that a tokenizer puts before and after those of each text."""

    before: list[int]
    after: list[int]


class Cutter:
    """Cuts long texts where the tokenizer's own pre-tokenizer does."""

    def __init__(self, tokenizer: Tokenizer, window: int = WINDOW, context: int = CONTEXT) -> None:
        self.tokenizer = tokenizer
        self.window = window
        longest = max(map(len, (token.content for token in tokenizer.get_added_tokens_decoder().values())), default=0)
        self.context = max(context, 2 * longest)
        self.longest_piece = min(LONGEST_PIECE, window // 2)

    def cut(self, texts: Iterable[str]) -> Iterator[Piece]:
        """Yield the pieces of one text that comes in several; one that is not long is one piece."""
        return cut_windows(texts, self.window + self.context, self.find_cut)

    def find_cut(self, text: str, start: int) -> tuple[int, bool]:
        """Return where the piece from `start` on ends, at most a window later, and whether that is in a pre-token."""
        stop = start + self.window
        lowest = stop - self.longest_piece
        word_ends = [match.end() for match in WORD_END.finditer(text, lowest, stop - 1)]
        for end in reversed(word_ends[-TRIES:]):
            left, right = end - self.context, end + self.context
            # With three beginnings, a tokenizer that counts from the beginning, as for groups of digits, is found out.
            if all(self.is_boundary(text, left + shift, end, right) for shift in range(3)):
                return end, False
        places = self.boundaries(text, start, stop)
        inner = [number for number, place in enumerate(places[:-1]) if lowest <= place <= stop]
        for number in inner[: -4 * TRIES - 1 : -1]:
            end = places[number]
            left = max((place for place in places[:number] if place <= end - self.context), default=start)
            right = max(end + self.context, *places[number : number + 4])
            if self.is_boundary(text, left, end, right):
                return end, False
        return stop, True

    def is_boundary(self, text: str, left: int, end: int, right: int) -> bool:
        """Return whether the tokenizer itself cuts at `end` in the text from `left` to `right`.

        The pre-token after `end` has to end before `right`: what follows changes nothing then.
        """
        both = self.encode(text[left:right])
        before, after = self.encode(text[left:end]), self.encode(text[end:right])
        if both.ids != before.ids + after.ids:
            return False
        words, place = both.word_ids, len(before.ids)
        after_word = text[end].isspace() and not text[end - 1].isspace()
        if words and words[0] == words[-1]:  # without pre-tokens, as Gemma's: its tokens are local
            return after_word
        if place == len(words):  # a long run of white space, which the pre-tokenizer drops
            return after_word
        return 0 < place < len(words) and words[place - 1] != words[place] != words[-1]

    def boundaries(self, text: str, start: int, stop: int) -> list[int]:
        """Return where pre-tokens begin or end in the text from `start`, itself such a place, to `stop`."""
        found = self.encode(text[start : stop + self.context])
        words, offsets = found.word_ids, found.offsets
        places = {0}
        for i in range(1, len(words)):
            if words[i] != words[i - 1]:
                places |= {offsets[i - 1][1], offsets[i][0]}
        return sorted(start + place for place in places)

    def encode(self, text: str) -> Encoding:
        """Return the encoding of a text within a document: without what begins and ends a document."""
        return self.tokenizer.encode(text, add_special_tokens=False)


def encode_documents(
    tokenizer: Tokenizer, parts: Iterable[Part], by_line: bool = False, window: int = WINDOW, context: int = CONTEXT
) -> Iterator[Encoded]:
    """Yield the ids of documents, a batch at a time, each document's being those of one call of `tokenizer.encode`.

    With `by_line` each line of a document is tokenized on its own.
    """
    cutter, affixes = Cutter(tokenizer, window, context), find_affixes(tokenizer)
    threads = usable_cores()
    waiting: deque[Future[Encoded]] = deque()

    def encode(batch: Batch) -> Encoded:
        return collect(batch, encode_batch(tokenizer, batch), affixes)

    # A batch a thread: a fifth faster than a batch on every thread, at the end of which each waits for the others.
    with one_thread_a_call(), ThreadPoolExecutor(threads) as pool:
        for batch in batches(cutter, parts, by_line):
            waiting.append(pool.submit(encode, batch))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def one_thread_a_call() -> Iterator[None]:
    """Have each call of `tokenizers` run on the thread that makes it."""
    before = os.environ.get(PARALLELISM)
    os.environ[PARALLELISM] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[PARALLELISM]
        else:
            os.environ[PARALLELISM] = before


def batches(cutter: Cutter, parts: Iterable[Part], by_line: bool) -> Iterator[Batch]:
    """Yield the pieces of documents in batches of about `BATCH_BYTES`."""
    batch, size = Batch([], []), 0
    for document in by_document(parts):
        units = by_document(split_lines(document)) if by_line else (document,)
        for unit in units:
            for piece in cutter.cut(unit):
                if size > BATCH_BYTES:
                    yield batch
                    batch, size = Batch([], []), 0
                batch.pieces.append(piece)
                size += utf8_length(piece.text) + PIECE_BYTES
        batch.ends.append(len(batch.pieces))
    if batch.pieces:
        yield batch


def encode_units(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[list[int]]:
    """Yield the ids of each text."""
    rest: list[int] = []
    for encoded in encode_documents(tokenizer, (Part(text, True) for text in texts)):
        *whole, last = np.split(encoded.ids_N, encoded.ends_D)
        for ids_N in whole:
            yield [*rest, *ids_N.tolist()]
            rest = []
        rest += last.tolist()


def split_lines(texts: Iterable[str]) -> Iterator[Part]:
    """Yield the lines of a text, each a document of its own; a text without any line is one empty line."""
    begins, line = True, ""
    for line in lines_of(texts, longest=1):
        yield Part(line, begins)
        begins = line.endswith("\n")
    if not line:
        yield Part("", True)


def cut_windows(
    texts: Iterable[str], longest: int, find_cut: Callable[[str, int], tuple[int, bool]]
) -> Iterator[Piece]:
    """Yield the pieces of one text that comes in several, none over `longest` characters.

    `find_cut` is given a text and where a piece begins; at least `longest` characters follow. It returns where the
    piece ends, and whether that is in a pre-token.
    """
    waiting: list[str] = []
    length = 0
    first = True
    for more in texts:
        waiting.append(more)
        length += len(more)
        if length <= longest:
            continue
        text, start = "".join(waiting), 0
        while len(text) - start > longest:
            end, forced = find_cut(text, start)
            yield Piece(text[start:end], first, last=False, forced=forced)
            start, first = end, False
        waiting, length = [text[start:]], len(text) - start
    yield Piece("".join(waiting), first, last=True)


def encode_batch(tokenizer: Tokenizer, batch: Batch) -> list[Encoding]:
    """Return the encodings of a batch's pieces, in order."""
    wholes, others = ([piece.text for piece in batch.pieces if piece.whole is whole] for whole in (True, False))
    of_wholes = iter(tokenizer.encode_batch_fast(wholes))
    of_others = iter(tokenizer.encode_batch_fast(others, add_special_tokens=False))
    return [next(of_wholes if piece.whole else of_others) for piece in batch.pieces]


def collect(batch: Batch, encodings: list[Encoding], affixes: Affixes) -> Encoded:
    """Return the ids of a batch as arrays."""
    ids, places = array("i"), array("q", [0])
    for piece, encoding in zip(batch.pieces, encodings, strict=True):
        if piece.first and not piece.whole:
            ids.extend(affixes.before)
        ids.extend(encoding.ids)
        if piece.last and not piece.whole:
            ids.extend(affixes.after)
        places.append(len(ids))
    forced, texts = sum(piece.forced for piece in batch.pieces), sum(piece.last for piece in batch.pieces)
    return Encoded(np.array(ids), np.array(places)[batch.ends], forced, texts)


def find_affixes(tokenizer: Tokenizer) -> Affixes:
    """Return the ids that a tokenizer puts before and after those of each text."""
    found = tokenizer.encode("a")
    text = [place for place, added in enumerate(found.special_tokens_mask) if not added]
    start, end = (text[0], text[-1] + 1) if text else (0, 0)
    return Affixes(found.ids[:start], found.ids[end:])


def special_ids(tokenizer: Tokenizer) -> dict[int, str]:
    """Return the special tokens by their ids, without the one for unknown words, which a text may well be full of."""
    unknown = {UNKNOWN, getattr(tokenizer.model, "unk_token", None)}
    added = tokenizer.get_added_tokens_decoder().items()
    return {id: token.content for id, token in added if token.special and token.content not in unknown}


def end_token(tokenizer: Tokenizer) -> str:
    """Return the special token that ends a text.

    Raises:
        InputError: the tokenizer has none that textgen knows.
    """
    for token in (END_OF_TEXT, END_OF_ROW):
        if tokenizer.token_to_id(token) is not None:
            return token
    raise InputError(f"tokenizer: its vocabulary has neither {END_OF_TEXT} nor {END_OF_ROW}")


def end_id(tokenizer: Tokenizer) -> int:
    """Return the id of the special token that ends a text.

    Raises:
        InputError: the tokenizer has none that textgen knows.
    """
    found = tokenizer.token_to_id(end_token(tokenizer))
    assert found is not None
    return found
