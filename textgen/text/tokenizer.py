"""Text to ids and back: GPT-2's tokenizer, a byte-level BPE of one's own, or a closed vocabulary of words."""

import ctypes
import json
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from textgen.config import MAX_VOCAB_SIZE, TokenizerConfig
from textgen.errors import InputError
from textgen.files import Manifest, expand_home, sha256_file, write_atomic
from textgen.hub import ANSWER_SECONDS, PIN_FILE, ask_hub, pin, pinned
from textgen.storage import Storage
from textgen.text.documents import Part, by_document
from textgen.text.encoding import (
    END_OF_ROW,
    END_OF_TEXT,
    UNKNOWN,
    WINDOW,
    Cutter,
    cut_windows,
    end_token,
    words_between_spaces,
)

log = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
GPT2_REPO = "openai-community/gpt2"
GPT2_FOLDER = "gpt2"  # of data/raw, a folder a commit
TRAINING_WINDOW = 2**16  # characters of a text that the trainer is given at once; it holds 256 of them
LONGEST_TAUGHT = 1024  # characters, after a space, of a pre-token that a BPE learns from: the longer, the slower
LONG_RUN = re.compile(rf"\S{{{LONGEST_TAUGHT},}}|\s{{{LONGEST_TAUGHT},}}")
MOST_MISSING = 2**20  # ids without a token, up to the largest one; a model has a row for each of them
SHOWN_CHARACTERS = 40
GPT2_WAYS_ON = "tokenizer.path=FOLDER for a local copy of its tokenizer.json, or tokenizer.kind=bpe for your own"


class GPT2Manifest(Manifest):
    """GPT-2's tokenizer as it came from the Hub."""

    revision: str
    sha256: str

    def sha256_by_file(self) -> dict[str, str]:
        return {TOKENIZER_FILE: self.sha256}


def find_tokenizer_file(config: TokenizerConfig, storage: Storage) -> Path | None:
    """Return the tokenizer.json to take, of those on this disk: a version's, the user's own, or GPT-2's.

    None where a tokenizer is to be trained, or GPT-2's was not fetched yet.

    Raises:
        InputError: the file is absent or no tokenizer.
    """
    if config.version is not None:
        name, version = config.version
        path = storage.models(name) / version / TOKENIZER_FILE
        load_tokenizer(path)
        return path
    if config.kind != "gpt2":
        return None
    if config.path is not None:
        path = expand_home(config.path)
        path = path / TOKENIZER_FILE if path.is_dir() else path
        load_tokenizer(path)
        return path
    home = storage.raw(GPT2_FOLDER)
    commit = pinned(home, None)
    return home / commit / TOKENIZER_FILE if commit is not None else None


def fetch_tokenizer_file(config: TokenizerConfig, storage: Storage) -> Path | None:
    """Return the tokenizer.json to take, GPT-2's frozen in data/raw/gpt2; None where one is to be trained.

    Raises:
        SourceUnavailable: the Hub did not give it.
        InputError: the file is absent or no tokenizer.
    """
    if config.kind != "gpt2" or config.path is not None:
        return find_tokenizer_file(config, storage)
    from huggingface_hub import HfApi, hf_hub_download

    home = storage.raw(GPT2_FOLDER)
    storage.bring_file(home / PIN_FILE)
    commit = pinned(home, None) or ask_hub(
        GPT2_REPO, GPT2_WAYS_ON, lambda: HfApi().model_info(GPT2_REPO, timeout=ANSWER_SECONDS).sha
    )
    assert commit is not None

    def freeze(temporary: Path) -> GPT2Manifest:
        with tempfile.TemporaryDirectory(dir=temporary.parent, prefix=".download-") as cache:
            file = ask_hub(
                GPT2_REPO,
                GPT2_WAYS_ON,
                lambda: hf_hub_download(GPT2_REPO, TOKENIZER_FILE, revision=commit, cache_dir=cache),
            )
            write_atomic(temporary / TOKENIZER_FILE, Path(file).read_bytes())
        return GPT2Manifest(key=commit, revision=commit, sha256=sha256_file(temporary / TOKENIZER_FILE))

    folder = storage.build(home / commit, GPT2Manifest, freeze).folder
    pin(home, None, commit)
    storage.push_file(home / PIN_FILE)
    return folder / TOKENIZER_FILE


def build_tokenizer(config: TokenizerConfig, train_rows: Iterable[str | Part], file: Path | None) -> Tokenizer:
    """Return the tokenizer of `file`, or the one that `config` describes, trained on `train_rows`."""
    if file is not None:
        return load_tokenizer(file)
    assert config.kind != "gpt2"
    if config.kind == "word":
        return collect_words(train_rows)
    tokenizer = train_bpe(train_rows, config.vocab_size)
    return_memory()
    return tokenizer


def return_memory() -> None:
    """Give the memory that is free back to the system: a BPE's training needed more than what follows it."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc only
        libc.malloc_trim(0)


def load_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json, without the truncation, padding and dropout that it may ask for.

    Raises:
        InputError: the file is absent, is no tokenizer, has no token that ends a text, or has ids that are too large.
    """
    if not path.is_file():
        raise InputError(f"tokenizer: there is no {path}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises this bare class
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"tokenizer: {path} is not a tokenizer.json: {reason}") from error
    try:
        end_token(tokenizer)
    except InputError as error:
        raise InputError(f"{error}: {path}") from None
    _check_ids(tokenizer, path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(tokenizer.model, models.BPE):
        tokenizer.model.dropout = None
    return tokenizer


def _check_ids(tokenizer: Tokenizer, path: Path) -> None:
    vocabulary, tokens = vocab_size(tokenizer), tokenizer.get_vocab_size(with_added_tokens=True)
    if vocabulary > MAX_VOCAB_SIZE:
        raise InputError(f"tokenizer: {path} has the id {vocabulary - 1:,}; int32 holds ids below {MAX_VOCAB_SIZE:,}")
    if vocabulary - tokens > MOST_MISSING:
        raise InputError(
            f"tokenizer: {path} has {tokens:,} tokens and the id {vocabulary - 1:,}: {vocabulary - tokens:,} ids "
            f"have no token, and a model would have a row for each; at most {MOST_MISSING:,} may be missing"
        )


def train_bpe(rows: Iterable[str | Part], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) of at most `vocab_size` ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    of_bytes = Tokenizer(models.BPE({character: id for id, character in enumerate(alphabet)}, []))
    of_bytes.pre_tokenizer = tokenizer.pre_tokenizer
    too_long: list[int] = []
    tokenizer.train_from_iterator(training_texts(rows, of_bytes, too_long), trainer)
    if too_long:
        log.warning(
            "tokenizer: %s characters of the text have no break in more than %s; the BPE is trained on pieces of them",
            f"{sum(too_long):,}",
            f"{LONGEST_TAUGHT:,}",
        )
    return tokenizer


def training_texts(rows: Iterable[str | Part], tokenizer: Tokenizer, too_long: list[int]) -> Iterator[str]:
    """Yield the text of documents in pieces that have the same pre-tokens, but for those over `LONGEST_TAUGHT`.

    These are cut, and their lengths added to `too_long`.
    """
    cutter = Cutter(tokenizer, TRAINING_WINDOW)
    for document in by_document(as_parts(rows)):
        for piece in cutter.cut(document):
            start = 0
            for run in LONG_RUN.finditer(piece.text):
                for _, (begin, end) in tokenizer.pre_tokenizer.pre_tokenize_str(run[0]):
                    if end - begin > LONGEST_TAUGHT:
                        too_long.append(end - begin)
                    for place in range(run.start() + begin + LONGEST_TAUGHT, run.start() + end, LONGEST_TAUGHT):
                        yield piece.text[start:place]
                        start = place
            yield piece.text[start:]


def as_parts(rows: Iterable[str | Part]) -> Iterator[Part]:
    """Yield parts of documents; a string is a document."""
    for row in rows:
        yield Part(row, True) if isinstance(row, str) else row


def find_space(text: str, start: int) -> tuple[int, bool]:
    """Return the last place for a cut in the window from `start` on, and whether it is in a word."""
    end = max(text.rfind(space, start + 1, start + WINDOW) for space in " \t\r\n")
    return (end, False) if end > 0 else (start + WINDOW, True)


def collect_words(rows: Iterable[str | Part]) -> Tokenizer:
    """Return a tokenizer of whitespace-separated words, the most frequent first, that ends each row with `<eos>`."""
    counts = Counter[str]()
    for document in by_document(as_parts(rows)):
        for piece in cut_windows(document, WINDOW, find_space):
            counts.update(words_between_spaces(piece.text))
    for special in (UNKNOWN, END_OF_ROW):
        counts.pop(special, None)
    words = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = {word: id for id, word in enumerate([UNKNOWN, END_OF_ROW, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END_OF_ROW}", special_tokens=[(END_OF_ROW, vocabulary[END_OF_ROW])]
    )
    tokenizer.add_special_tokens([END_OF_ROW])
    return tokenizer


def vocab_size(tokenizer: Tokenizer) -> int:
    """Return how many rows an embedding needs: the largest id plus one, whichever ids are missing."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def check_round_trip(tokenizer: Tokenizer, excerpts: Iterable[str | Part]) -> None:
    """Check that the tokenizer gives excerpts of a text back as they were.

    White space at the start of one that does not begin a text does not count: a tokenizer may add or drop some at the
    start of a text.

    Raises:
        InputError: it changes or loses some of them.
    """
    parts = list(as_parts(excerpts))
    try:
        encodings = tokenizer.encode_batch_fast([part.text for part in parts], add_special_tokens=False)
        decoded = tokenizer.decode_batch([encoding.ids for encoding in encodings], skip_special_tokens=False)
    except Exception as error:  # the Rust library raises this bare class
        raise InputError(f"tokenizer.path: it does not take the text: {' '.join(str(error).split())}") from error
    for (text, begins), found in zip(parts, decoded, strict=True):
        if not begins:
            text, found = text.lstrip(), found.lstrip()
        if found != text:
            same = (a == b for a, b in zip(text, found, strict=False))
            start = sum(takewhile(bool, same))
            was, became = (ascii(some[start : start + SHOWN_CHARACTERS]) for some in (text, found))
            raise InputError(f"tokenizer.path: it does not give the text back: {was} becomes {became}")


def save_tokenizer(tokenizer: Tokenizer, folder: Path, seq_length: int | None = None) -> list[str]:
    """Write `tokenizer.json` and the `tokenizer_config.json` with which transformers' AutoTokenizer opens it.

    With the context of a model, shorter texts of a batch are filled up on the left, with the end-of-text token: what
    masks them leaves the vocabulary as it is.

    Returns:
        The files' names.
    """
    end = end_token(tokenizer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "unk_token": UNKNOWN if end == END_OF_ROW else end,
        "clean_up_tokenization_spaces": False,
    }
    if seq_length is not None:
        config |= {"model_max_length": seq_length, "pad_token": end, "padding_side": "left"}
    write_atomic(folder / TOKENIZER_FILE, tokenizer.to_str(pretty=True))
    write_atomic(folder / TOKENIZER_CONFIG_FILE, json.dumps(config, indent=2) + "\n")
    return [TOKENIZER_FILE, TOKENIZER_CONFIG_FILE]
