"""Token streams in data/processed: one 1-D tensor a split, and the blocks and shifted targets cut from it."""

import logging
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from textgen.config import MAX_VOCAB_SIZE, SPLITS, TokenizerConfig
from textgen.errors import InputError
from textgen.files import Manifest, content_key, sha256_file, write_atomic
from textgen.storage import Storage
from textgen.text.corpus import RawManifest, read_parts, read_rows, read_unit_parts
from textgen.text.documents import Part, WordCount
from textgen.text.encoding import encode_documents
from textgen.text.tokenizer import (
    END_OF_ROW,
    TOKENIZER_FILE,
    UNKNOWN,
    build_tokenizer,
    check_round_trip,
    end_id,
    fetch_gpt2_file,
    load_tokenizer,
    save_tokenizer,
    vocab_size,
)

log = logging.getLogger(__name__)

ROWS_VERSION = 2  # of the algorithm for rows without ends of documents; a change makes their tokens keys new
TOKENS_VERSION = 3  # of the algorithm for other text
COUNTED_IDS = 1 << 22  # at once
CHECKED_ROWS = 1000  # of train, that a user's own tokenizer must reproduce
UINT16_IDS = 2**16


class TextCounts(BaseModel):
    """How much a text is: the denominators of perplexity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int
    unknown: int  # tokens that stand for a word outside the vocabulary
    rows: int
    words: int  # separated by whitespace
    text_bytes: int  # in UTF-8


class TokensSplit(TextCounts):
    """One split's stream, and the counts of the text it came from."""

    file: str
    sha256: str
    bytes: int  # of the file
    documents_file: str  # the tokens, words and bytes of each document
    documents_sha256: str


class Stream(NamedTuple):
    """A text's ids as one tensor [N], the counts of each document, and those of the whole."""

    ids_N: Tensor
    documents: dict[str, Tensor]  # the `tokens`, `words` and `bytes` of each: int64 [D]
    counts: TextCounts
    forced_cuts: int  # pieces of text that no white space cuts, and that were cut because they are so long


class TokensManifest(Manifest):
    """The token streams of a corpus and the tokenizer that made them."""

    raw_key: str
    raw_sha256: dict[str, str]
    tokenizer: TokenizerConfig
    tokenizer_sha256: dict[str, str]
    vocab_size: int
    dtype: str
    splits: dict[str, TokensSplit]
    end_of_document: bool = False  # whether an end-of-text id follows each document

    def sha256_by_file(self) -> dict[str, str]:
        streams = {split.file: split.sha256 for split in self.splits.values()}
        documents = {split.documents_file: split.documents_sha256 for split in self.splits.values()}
        return {**self.tokenizer_sha256, **streams, **documents}

    @property
    def root(self) -> Path:
        """The storage folder that has them in processed/, which may itself be a link to another disk."""
        return self.folder.absolute().parents[1]


def tokens_key(raw: RawManifest, config: TokenizerConfig, gpt2_file: Path | None, end_of_document: bool = True) -> str:
    """Return the key of the tokens: the algorithm, the raw text and what defines the tokenizer."""
    text = {split: raw.splits[split].sha256 for split in SPLITS}
    definition: dict[str, str | int]
    match config.kind:
        case "gpt2":
            assert gpt2_file is not None
            definition = {"kind": config.kind, "sha256": sha256_file(gpt2_file)}
        case "bpe":
            definition = {"kind": config.kind, "vocab_size": config.vocab_size}
        case "word":
            definition = {"kind": config.kind}
    ends = ends_documents(config, end_of_document)
    if not (ends or raw.has_units):
        return content_key(ROWS_VERSION, text, definition)
    return content_key(TOKENS_VERSION, text, definition, {"end_of_document": ends, "has_units": raw.has_units})


def ends_documents(config: TokenizerConfig, end_of_document: bool) -> bool:
    """Return whether an end-of-text id follows each document; with the word tokenizer each row or line has its own."""
    return end_of_document and config.kind != "word"


def tokenize(
    raw: RawManifest, config: TokenizerConfig, storage: Storage, end_of_document: bool = True
) -> TokensManifest:
    """Tokenize the corpus into data/processed and return its manifest; tokens that are there are only verified.

    Raises:
        InputError: the tokenizer file is absent, is no tokenizer, or does not reproduce the text.
        SourceUnavailable: GPT-2's tokenizer could not be had from the Hub.
    """
    storage.bring(raw.folder, RawManifest)
    gpt2_file = fetch_gpt2_file(config, storage)
    folder = storage.processed(tokens_key(raw, config, gpt2_file, end_of_document))

    def build(temporary: Path) -> TokensManifest:
        tokenizer = build_tokenizer(config, read_unit_parts(raw, "train"), gpt2_file)
        if config.kind == "gpt2":
            check_round_trip(tokenizer, islice(read_rows(raw, "train"), CHECKED_ROWS))
        vocabulary = vocab_size(tokenizer)
        tokenizer_files = save_tokenizer(tokenizer, temporary)
        ends = ends_documents(config, end_of_document)
        splits = {split: write_split(tokenizer, raw, split, ends, temporary) for split in SPLITS}
        return TokensManifest(
            key=folder.name,
            raw_key=raw.key,
            raw_sha256={split: raw.splits[split].sha256 for split in SPLITS},
            tokenizer=config,
            tokenizer_sha256={name: sha256_file(temporary / name) for name in tokenizer_files},
            vocab_size=vocabulary,
            dtype=str(dtype_for(vocabulary)).removeprefix("torch."),
            splits=splits,
            end_of_document=ends,
        )

    return storage.build(folder, TokensManifest, build)


def write_split(tokenizer: Tokenizer, raw: RawManifest, split: str, ends: bool, folder: Path) -> TokensSplit:
    """Write the stream and the documents of a split into `folder` and return what they hold."""
    path, documents_path = folder / f"{split}.pt", folder / f"{split}.documents.safetensors"
    parts = tqdm(read_parts(raw, split), f"tokenize {split}", unit="row", disable=None)
    with tempfile.TemporaryFile(dir=folder) as file:
        stream = encode_stream(tokenizer, parts, dtype_for(vocab_size(tokenizer)), raw.has_units, ends, file)
        save_tensor(stream.ids_N, path)
    if stream.forced_cuts:
        log.warning(
            "%s: %d pieces of text without a place to cut are so long that they were cut", split, stream.forced_cuts
        )
    write_atomic(documents_path, save(stream.documents))
    return TokensSplit(
        file=path.name, sha256=sha256_file(path), bytes=path.stat().st_size, documents_file=documents_path.name,
        documents_sha256=sha256_file(documents_path), **stream.counts.model_dump(),
    )  # fmt: skip


def dtype_for(vocab_size: int) -> torch.dtype:
    """Return the narrowest type that holds every id of a vocabulary.

    Raises:
        InputError: no type of a stream does.
    """
    if vocab_size > MAX_VOCAB_SIZE:
        raise InputError(f"tokenizer: a vocabulary of {vocab_size:,} ids is over the {MAX_VOCAB_SIZE:,} of int32")
    return torch.uint16 if vocab_size <= UINT16_IDS else torch.int32


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
    tally, ids = Tally(), Ids(dtype, file)
    end = end_id(tokenizer) if ends else None
    by_line = has_units and tokenizer.token_to_id(END_OF_ROW) is not None
    unknown_id = tokenizer.token_to_id(UNKNOWN)
    unknown = forced_cuts = rest = 0
    units = array("q")  # the tokens of each
    for encoded in encode_documents(tokenizer, tally.watch(parts, has_units, unknown_id is not None), by_line):
        ids_N, ends_U = encoded.ids_N, encoded.ends_D
        if unknown_id is not None:
            unknown += int((ids_N == unknown_id).sum())
        forced_cuts += encoded.forced_cuts
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
        rows=len(units),
        words=int(documents["words"].sum()),
        text_bytes=int(documents["bytes"].sum()),
    )
    return Stream(ids.tensor(), documents, counts, forced_cuts)


class Tally:
    """The words and bytes of the units of a text, and which of them begin a document."""

    def __init__(self) -> None:
        self.begins, self.words, self.bytes = array("b"), array("q"), array("q")
        self.written_unknown = 0

    def watch(self, parts: Iterable[Part], has_units: bool, has_unknown: bool) -> Iterator[Part]:
        """Yield the parts, each with whether a unit begins there, and count what is in them."""
        count = WordCount()
        for part in parts:
            if begins := part.begins or not has_units:
                count = WordCount()
                self.begins.append(part.begins)
                self.words.append(0)
                self.bytes.append(0)
            count.add(part.text)
            self.words[-1], self.bytes[-1] = count.words, count.bytes
            if has_unknown:
                self.written_unknown += part.text.split().count(UNKNOWN)
            yield Part(part.text, begins)

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


def save_tensor(tensor: Tensor, path: Path) -> None:
    """Save with `torch.save`; given a path and no file, it would write the file's name into its bytes."""
    with path.open("wb") as file:
        torch.save(tensor, file)


def load_stream(manifest: TokensManifest, split: str) -> Tensor:
    """Return a split's ids [N], mapped from the disk and not read into memory."""
    return torch.load(manifest.folder / manifest.splits[split].file, mmap=True, weights_only=True)


def count_ids(manifest: TokensManifest, split: str) -> Tensor:
    """Return how often each id is in a split: int64 [V]."""
    counts_V = torch.zeros(manifest.vocab_size, dtype=torch.int64)
    for ids_N in load_stream(manifest, split).split(COUNTED_IDS):
        counts_V += ids_N.long().bincount(minlength=manifest.vocab_size)
    return counts_V


def load_documents(manifest: TokensManifest, split: str) -> dict[str, Tensor]:
    """Return the `tokens`, `words` and `bytes` of each of a split's documents: int64 [D]."""
    return load_file(manifest.folder / manifest.splits[split].documents_file)


def load_manifest_tokenizer(manifest: TokensManifest) -> Tokenizer:
    """Return the tokenizer that made the tokens."""
    return load_tokenizer(manifest.folder / TOKENIZER_FILE)


def block_count(tokens: int, seq_length: int) -> int:
    """Return how many blocks of `seq_length` inputs, each with a target after it, `tokens` tokens hold."""
    return max(0, (tokens - 1) // seq_length)


def take_sequences(stream_N: Tensor, seq_length: int, starts_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs and targets [B, T] (int64) of the sequences that start at `starts_B`.

    A target is the token after its input; block i starts at `i * seq_length`.
    """
    ids_BS = stream_N[starts_B[:, None] + torch.arange(seq_length + 1)].long()
    return ids_BS[:, :-1], ids_BS[:, 1:]


def check_length(manifest: TokensManifest, seq_length: int) -> None:
    """Check that each split holds a block.

    Raises:
        InputError: a split is too short for `seq_length`.
    """
    for name, split in manifest.splits.items():
        if block_count(split.tokens, seq_length) == 0:
            raise InputError(
                f"data.seq_length={seq_length}: the {name} split has only {split.tokens:,} tokens; "
                "it needs one more than data.seq_length"
            )
