"""Token streams in data/processed: one 1-D tensor a split, and the blocks and shifted targets cut from it."""

import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch
from pydantic import Field
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch import Tensor

from textgen.bar import BYTE, Bar
from textgen.config import MAX_VOCAB_SIZE, TokenizerConfig
from textgen.errors import InputError
from textgen.files import Manifest, content_key, naming_the_file, sha256_file, write_atomic
from textgen.sections import SPLITS
from textgen.storage import Storage
from textgen.terminal import one_line
from textgen.text.corpus import RawManifest, read_excerpts, read_parts, read_unit_parts
from textgen.text.documents import Part, utf8_length
from textgen.text.stream import TextCounts, block_count, encode_stream
from textgen.text.tokenizer import (
    TOKENIZER_FILE,
    build_tokenizer,
    check_round_trip,
    fetch_tokenizer_file,
    load_tokenizer,
    save_tokenizer,
    vocab_size,
)

log = logging.getLogger(__name__)

ROWS_VERSION = 2  # of the algorithm for rows without ends of documents; a change makes their tokens keys new
LINES_VERSION = 4  # of that for words line by line, of which each line is a row since
TOKENS_VERSION = 3  # of the algorithm for other text
COUNTED_IDS = 1 << 22  # at once
CHECKED = {"train": 512, "validation": 128, "test": 128}  # excerpts that a user's own tokenizer must give back,
CHECKED_CHARACTERS = 2048  # and how long each is
UINT16_IDS = 2**16


class TokensSplit(TextCounts):
    """One split's stream, and the counts of the text it came from."""

    file: str
    sha256: str
    bytes: int  # of the file
    documents_file: str  # the tokens, words and bytes of each document
    documents_sha256: str
    special_tokens: dict[str, int] = Field({})  # how often the text itself has the name of each special token


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


def tokens_key(raw: RawManifest, config: TokenizerConfig, file: Path | None, end_of_document: bool = True) -> str:
    """Return the key of the tokens: the algorithm, the raw text and what defines the tokenizer."""
    text = {split: raw.splits[split].sha256 for split in SPLITS}
    assert file is not None or config.kind != "gpt2"
    definition: dict[str, str | int] = {"kind": config.kind}
    if file is not None:
        definition["sha256"] = sha256_file(file)
    elif config.kind == "bpe":
        definition["vocab_size"] = config.vocab_size
    ends = ends_documents(config, end_of_document)
    if not (ends or raw.has_units):
        return content_key(ROWS_VERSION, text, definition)
    version = LINES_VERSION if config.kind == "word" and raw.has_units else TOKENS_VERSION
    return content_key(version, text, definition, {"end_of_document": ends, "has_units": raw.has_units})


def ends_documents(config: TokenizerConfig, end_of_document: bool) -> bool:
    """Return whether an end-of-text id follows each document; with the word tokenizer each row or line has its own."""
    return end_of_document and config.kind != "word"


def tokenize(
    raw: RawManifest, config: TokenizerConfig, storage: Storage, end_of_document: bool = True
) -> TokensManifest:
    """Tokenize the corpus into data/processed and return its manifest; tokens that are there are only verified.

    Raises:
        InputError: the tokenizer file is absent, is no tokenizer, or does not give excerpts of the text back.
        SourceUnavailable: GPT-2's tokenizer could not be had from the Hub.
    """
    storage.bring(raw.folder, RawManifest)
    file = fetch_tokenizer_file(config, storage)
    folder = storage.processed(tokens_key(raw, config, file, end_of_document))

    def build(temporary: Path) -> TokensManifest:
        tokenizer = build_tokenizer(config, read_unit_parts(raw, "train"), file)
        if config.kind == "gpt2":
            excerpts = (read_excerpts(raw, split, most, CHECKED_CHARACTERS) for split, most in CHECKED.items())
            check_round_trip(tokenizer, chain.from_iterable(excerpts))
        vocabulary = vocab_size(tokenizer)
        tokenizer_files = save_tokenizer(tokenizer, temporary)
        ends = ends_documents(config, end_of_document)
        splits = {split: write_split(tokenizer, raw, split, ends, temporary) for split in SPLITS}
        for line in special_tokens_in_words(splits.values()):
            log.warning("%s", line)
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
    with (
        Bar(f"tokenize {split}", raw.splits[split].text_bytes, BYTE) as bar,
        tempfile.TemporaryFile(dir=folder) as file,
    ):
        parts = _watched(read_parts(raw, split), bar)
        stream = encode_stream(tokenizer, parts, dtype_for(vocab_size(tokenizer)), raw.has_units, ends, file)
        save_tensor(stream.ids_N, path)
    if stream.forced_cuts:
        log.warning(
            "%s: %d pieces of text without a place to cut are so long that they were cut", split, stream.forced_cuts
        )
    write_atomic(documents_path, save(stream.documents))
    return TokensSplit(
        file=path.name, sha256=sha256_file(path), bytes=path.stat().st_size, documents_file=documents_path.name,
        documents_sha256=sha256_file(documents_path), special_tokens=stream.special_tokens,
        **stream.counts.model_dump(),
    )  # fmt: skip


def _watched(parts: Iterable[Part], bar: Bar) -> Iterator[Part]:
    for part in parts:
        yield part
        bar.update(utf8_length(part.text))


def special_tokens_in_words(splits: Iterable[TokensSplit]) -> list[str]:
    """Return a line on the special tokens that the text itself names; none where it names none."""
    counts = Counter[str]()
    for split in splits:
        counts.update(split.special_tokens)
    if not counts:
        return []
    named = ", ".join(f"`{one_line(name)}` {count:,} times" for name, count in counts.most_common())
    return [f"the text has {named}; each is read as the special token of that name"]


def dtype_for(vocab_size: int) -> torch.dtype:
    """Return the narrowest type that holds every id of a vocabulary.

    Raises:
        InputError: no type of a stream does.
    """
    if vocab_size > MAX_VOCAB_SIZE:
        raise InputError(f"tokenizer: a vocabulary of {vocab_size:,} ids is over the {MAX_VOCAB_SIZE:,} of int32")
    return torch.uint16 if vocab_size <= UINT16_IDS else torch.int32


def save_tensor(tensor: Tensor, path: Path) -> None:
    """Save with `torch.save`; given a path and no file, it would write the file's name into its bytes."""
    with naming_the_file(path), path.open("wb") as file:
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
