"""Token streams in data/processed: one 1-D tensor a split, and the blocks and shifted targets cut from it."""

import io
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

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
from textgen.text import documents
from textgen.text.corpus import RawManifest, read_rows
from textgen.text.tokenizer import (
    TOKENIZER_FILE,
    UNKNOWN,
    build_tokenizer,
    encode_rows,
    fetch_gpt2_file,
    load_tokenizer,
    save_tokenizer,
)

TOKENS_VERSION = 2  # of the algorithm; a change makes every tokens key new
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
    """The ids of rows, each tokenized on its own, as one tensor [N], and how many each row has."""

    ids_N: Tensor
    row_tokens: array
    unknown: int


class TokensManifest(Manifest):
    """The token streams of a corpus and the tokenizer that made them."""

    raw_key: str
    raw_sha256: dict[str, str]
    tokenizer: TokenizerConfig
    tokenizer_sha256: dict[str, str]
    vocab_size: int
    dtype: str
    splits: dict[str, TokensSplit]

    def sha256_by_file(self) -> dict[str, str]:
        streams = {split.file: split.sha256 for split in self.splits.values()}
        documents = {split.documents_file: split.documents_sha256 for split in self.splits.values()}
        return {**self.tokenizer_sha256, **streams, **documents}

    @property
    def root(self) -> Path:
        """The storage folder that has them in processed/, which may itself be a link to another disk."""
        return self.folder.absolute().parents[1]


def tokens_key(raw: RawManifest, config: TokenizerConfig, gpt2_file: Path | None) -> str:
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
    return content_key(TOKENS_VERSION, text, definition)


def tokenize(raw: RawManifest, config: TokenizerConfig, storage: Storage) -> TokensManifest:
    """Tokenize the corpus into data/processed and return its manifest; tokens that are there are only verified.

    Raises:
        InputError: the tokenizer file is absent or no tokenizer.
        SourceUnavailable: GPT-2's tokenizer could not be had from the Hub.
    """
    storage.bring(raw.folder, RawManifest)
    gpt2_file = fetch_gpt2_file(config, storage)
    folder = storage.processed(tokens_key(raw, config, gpt2_file))

    def build(temporary: Path) -> TokensManifest:
        rows_by_split = {split: read_rows(raw, split) for split in SPLITS}
        tokenizer = build_tokenizer(config, rows_by_split["train"], gpt2_file)
        vocab_size = tokenizer.get_vocab_size()
        dtype = dtype_for(vocab_size)
        tokenizer_files = save_tokenizer(tokenizer, temporary)
        splits = {}
        for split, rows in rows_by_split.items():
            stream = encode_stream(tokenizer, rows, dtype, split)
            path, documents_path = temporary / f"{split}.pt", temporary / f"{split}.documents.safetensors"
            save_tensor(stream.ids_N, path)
            write_atomic(documents_path, save(documents.count(rows, stream.row_tokens)))
            splits[split] = TokensSplit(
                file=path.name,
                sha256=sha256_file(path),
                bytes=path.stat().st_size,
                documents_file=documents_path.name,
                documents_sha256=sha256_file(documents_path),
                tokens=len(stream.ids_N),
                unknown=stream.unknown,
                rows=raw.splits[split].rows,
                words=raw.splits[split].words,
                text_bytes=raw.splits[split].text_bytes,
            )
        return TokensManifest(
            key=folder.name,
            raw_key=raw.key,
            raw_sha256={split: raw.splits[split].sha256 for split in SPLITS},
            tokenizer=config,
            tokenizer_sha256={name: sha256_file(temporary / name) for name in tokenizer_files},
            vocab_size=vocab_size,
            dtype=str(dtype).removeprefix("torch."),
            splits=splits,
        )

    return storage.build(folder, TokensManifest, build)


def dtype_for(vocab_size: int) -> torch.dtype:
    """Return the narrowest type that holds every id of a vocabulary.

    Raises:
        InputError: no type of a stream does.
    """
    if vocab_size > MAX_VOCAB_SIZE:
        raise InputError(f"tokenizer: a vocabulary of {vocab_size:,} ids is over the {MAX_VOCAB_SIZE:,} of int32")
    return torch.uint16 if vocab_size <= UINT16_IDS else torch.int32


def encode_stream(tokenizer: Tokenizer, rows: Sequence[str], dtype: torch.dtype, label: str) -> Stream:
    """Return the stream of the rows and how many of its ids stand for unknown words.

    A word that is `<unk>` in the text itself, as in WikiText's word-level release, is not unknown.
    """
    ids, row_tokens = array("H" if dtype == torch.uint16 else "i"), array("q")
    for row in tqdm(encode_rows(tokenizer, rows), f"tokenize {label}", total=len(rows), unit="row", disable=None):
        ids.extend(row)
        row_tokens.append(len(row))
    ids_N = torch.frombuffer(ids, dtype=dtype) if ids else torch.empty(0, dtype=dtype)
    unknown_id = tokenizer.token_to_id(UNKNOWN)
    if unknown_id is None:
        return Stream(ids_N, row_tokens, 0)
    written = sum(row.split().count(UNKNOWN) for row in rows)
    return Stream(ids_N, row_tokens, int((ids_N == unknown_id).sum()) - written)


def save_tensor(tensor: Tensor, path: Path) -> None:
    """Save with `torch.save`, through memory: given a path, it would write the file's name into its bytes."""
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    write_atomic(path, buffer.getvalue())


def load_stream(manifest: TokensManifest, split: str) -> Tensor:
    """Return a split's ids [N], mapped from the disk and not read into memory."""
    return torch.load(manifest.folder / manifest.splits[split].file, mmap=True, weights_only=True)


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
