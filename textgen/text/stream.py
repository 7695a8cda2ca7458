"""A text's token ids as one stream, with the words, bytes and tokens of each document."""

from array import array
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer
from torch import Tensor

from textgen.text.documents import Part, WordCount
from textgen.text.encoding import (
    END_OF_ROW,
    UNKNOWN,
    Encoded,
    encode_documents,
    end_id,
    ends_in_space,
    find_affixes,
    special_ids,
    words_between_spaces,
)


class TextCounts(BaseModel):
    """How much a text is: the denominators of perplexity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int
    unknown: int  # tokens that stand for a word outside the vocabulary
    rows: int
    words: int  # separated by whitespace
    text_bytes: int  # in UTF-8


class Stream(NamedTuple):
    """A text's ids as one tensor [N], the counts of each document, and those of the whole."""

    ids_N: Tensor
    documents: dict[str, Tensor]  # the `tokens`, `words` and `bytes` of each: int64 [D]
    counts: TextCounts
    forced_cuts: int  # pieces of text that no white space cuts, and that were cut because they are so long
    special_tokens: dict[str, int]  # how often the text itself has the name of each special token


def encode_stream(
    tokenizer: Tokenizer,
    parts: Iterable[Part],
    dtype: torch.dtype,
    has_units: bool = False,
    ends: bool = False,
    file: IO[bytes] | None = None,
) -> Stream:
    """Return the stream of a text.

    A word that is `<unk>` in the text itself, as in WikiText's word-level release, is not unknown.

    Args:
        tokenizer: What makes the ids.
        parts: The text.
        dtype: The type of the ids, uint16 or int32.
        has_units: Whether a document is tokenized as a whole, by the word tokenizer line by line; else each part is.
        ends: Whether an end-of-text id follows each document.
        file: Where the ids are written, from which they are then mapped; None: they stay in memory.
    """
    tally, ids, specials = Tally(), Ids(dtype, file), SpecialTokens(tokenizer)
    end = end_id(tokenizer) if ends else None
    by_line = has_units and tokenizer.token_to_id(END_OF_ROW) is not None
    unknown_id = tokenizer.token_to_id(UNKNOWN)
    unknown = forced_cuts = rest = texts = 0
    units = array("q")  # the tokens of each
    for encoded in encode_documents(tokenizer, tally.watch(parts, has_units, unknown_id is not None), by_line):
        ids_N, ends_U = encoded.ids_N, encoded.ends_D
        if unknown_id is not None:
            unknown += int((ids_N == unknown_id).sum())
        forced_cuts, texts = forced_cuts + encoded.forced_cuts, texts + encoded.texts
        specials.add(encoded)
        last = len(units)
        units.extend(np.diff(ends_U, prepend=-rest).tolist())
        rest = len(ids_N) - int(ends_U[-1]) if len(ends_U) else rest + len(ids_N)
        if end is not None:
            ids_N = np.insert(ids_N, [place for number, place in enumerate(ends_U, last) if tally.ends(number)], end)
        ids.add(ids_N)
    documents = tally.by_document(units, ends)
    counts = TextCounts(
        tokens=ids.length,
        unknown=unknown - tally.written_unknown,
        rows=texts if by_line else len(units),
        words=int(documents["words"].sum()),
        text_bytes=int(documents["bytes"].sum()),
    )
    return Stream(ids.tensor(), documents, counts, forced_cuts, specials.written())


class SpecialTokens:
    """Counts the special tokens that a text itself names: those that the tokenizer puts around each text are not."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.names = special_ids(tokenizer)
        affixes = find_affixes(tokenizer)
        self.around = {id: (affixes.before + affixes.after).count(id) for id in self.names}
        self.ids_S = np.array(list(self.names), np.int32)
        self.counts, self.texts = dict.fromkeys(self.names, 0), 0

    def add(self, encoded: Encoded) -> None:
        """Count those of some of the text."""
        self.texts += encoded.texts
        found, counts = np.unique(encoded.ids_N[np.isin(encoded.ids_N, self.ids_S)], return_counts=True)
        for id, count in zip(found.tolist(), counts.tolist(), strict=True):
            self.counts[id] += count

    def written(self) -> dict[str, int]:
        """Return how often the text has the name of each, without those that it has not."""
        written = {name: self.counts[id] - self.texts * self.around[id] for id, name in self.names.items()}
        return {name: count for name, count in written.items() if count}


class Tally:
    """The words and bytes of the units of a text, and which of them begin a document."""

    def __init__(self) -> None:
        self.begins, self.words, self.bytes = array("b"), array("q"), array("q")
        self.written_unknown = 0

    def watch(self, parts: Iterable[Part], has_units: bool, has_unknown: bool) -> Iterator[Part]:
        """Yield the parts, each with whether a unit begins there, and count what is in them."""
        count, word = WordCount(), ""  # the beginning of a word that the next part may go on with
        for part in parts:
            if begins := part.begins or not has_units:
                self.written_unknown += word == UNKNOWN
                count, word = WordCount(), ""
                self.begins.append(part.begins)
                self.words.append(0)
                self.bytes.append(0)
            count.add(part.text)
            self.words[-1], self.bytes[-1] = count.words, count.bytes
            if has_unknown and (words := words_between_spaces(word + part.text)):
                word = "" if ends_in_space(part.text) else words.pop()[: len(UNKNOWN) + 1]  # longer, it is another word
                self.written_unknown += words.count(UNKNOWN)
            yield Part(part.text, begins)
        self.written_unknown += word == UNKNOWN

    def ends(self, unit: int) -> bool:
        """Return whether a document ends with a unit; the unit after it was seen, if there is one."""
        return unit + 1 == len(self.begins) or bool(self.begins[unit + 1])

    def by_document(self, tokens: array, ends: bool) -> dict[str, Tensor]:
        """Return the `tokens`, `words` and `bytes` of each document, by the tokens of each unit: int64 [D]."""
        starts_D: np.ndarray = np.flatnonzero(np.array(self.begins, np.int8))
        found = {"tokens": tokens, "words": self.words, "bytes": self.bytes}
        if not len(starts_D):  # a text of nothing is one document
            return {name: torch.zeros(1, dtype=torch.int64) for name in found}
        sums = {name: np.add.reduceat(np.frombuffer(array, np.int64), starts_D) for name, array in found.items()}
        return {name: torch.from_numpy(sum_D + (ends and name == "tokens")) for name, sum_D in sums.items()}


class Ids:
    """Ids that are collected in memory, or in a file from which they are then mapped."""

    def __init__(self, dtype: torch.dtype, file: IO[bytes] | None) -> None:
        self.dtype, self.file, self.length = np.uint16 if dtype == torch.uint16 else np.int32, file, 0
        self._arrays: list[np.ndarray] = []

    def add(self, ids_N: np.ndarray) -> None:
        """Append ids."""
        ids_N = ids_N.astype(self.dtype)
        self.length += len(ids_N)
        if self.file is not None:
            self.file.write(ids_N.tobytes())
        else:
            self._arrays.append(ids_N)

    def tensor(self) -> Tensor:
        """Return all ids [N]."""
        if self.file is None or self.length == 0:
            return torch.from_numpy(np.concatenate([np.empty(0, self.dtype), *self._arrays]))
        self.file.flush()
        return torch.from_numpy(np.memmap(self.file, self.dtype, "c", shape=(self.length,)))


def block_count(tokens: int, seq_length: int) -> int:
    """Return how many blocks of `seq_length` inputs, each with a target after it, `tokens` tokens hold."""
    return max(0, (tokens - 1) // seq_length)


def take_sequences(stream_N: Tensor, seq_length: int, starts_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs and targets [B, T] (int64) of the sequences that start at `starts_B`.

    A target is the token after its input; block i starts at `i * seq_length`.
    """
    ids_BS = stream_N[starts_B[:, None] + torch.arange(seq_length + 1)].long()
    return ids_BS[:, :-1], ids_BS[:, 1:]
