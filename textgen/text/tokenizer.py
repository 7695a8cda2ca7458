"""Text to ids and back: GPT-2's tokenizer, a byte-level BPE of one's own, or a closed vocabulary of words."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from textgen.config import TokenizerConfig
from textgen.errors import InputError
from textgen.files import Manifest, sha256_file, write_atomic
from textgen.hub import ANSWER_SECONDS, PIN_FILE, ask_hub, pin, pinned
from textgen.storage import Storage

END_OF_TEXT = "<|endoftext|>"
END_OF_ROW = "<eos>"
UNKNOWN = "<unk>"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
GPT2_REPO = "openai-community/gpt2"
GPT2_FOLDER = "gpt2"  # of data/raw, a folder a commit
GPT2_WAYS_ON = "tokenizer.path=FOLDER for a local copy of its tokenizer.json, or tokenizer.kind=bpe for your own"


class GPT2Manifest(Manifest):
    """GPT-2's tokenizer as it came from the Hub."""

    revision: str
    sha256: str

    def sha256_by_file(self) -> dict[str, str]:
        return {TOKENIZER_FILE: self.sha256}


def find_gpt2_file(config: TokenizerConfig, storage: Storage) -> Path | None:
    """Return the GPT-2 tokenizer.json that is on this disk: the user's own, or the one frozen at the first fetch."""
    if config.kind != "gpt2":
        return None
    if config.path is not None:
        path = Path(config.path)
        path = path / TOKENIZER_FILE if path.is_dir() else path
        load_tokenizer(path)
        return path
    home = storage.raw(GPT2_FOLDER)
    commit = pinned(home, None)
    return home / commit / TOKENIZER_FILE if commit is not None else None


def fetch_gpt2_file(config: TokenizerConfig, storage: Storage) -> Path | None:
    """Return GPT-2's tokenizer.json, frozen in data/raw/gpt2, or the user's own; None where `config` wants neither.

    Raises:
        SourceUnavailable: the Hub did not give it.
        InputError: the user's own is absent or no tokenizer.
    """
    if config.kind != "gpt2" or config.path is not None:
        return find_gpt2_file(config, storage)
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


def build_tokenizer(config: TokenizerConfig, train_rows: Iterable[str], gpt2_file: Path | None) -> Tokenizer:
    """Return the tokenizer that `config` describes, trained on `train_rows` unless it is GPT-2's."""
    match config.kind:
        case "gpt2":
            assert gpt2_file is not None
            return load_tokenizer(gpt2_file)
        case "bpe":
            return train_bpe(train_rows, config.vocab_size)
        case "word":
            return collect_words(train_rows)


def load_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json.

    Raises:
        InputError: the file is absent or is no tokenizer.
    """
    if not path.is_file():
        raise InputError(f"tokenizer: there is no {path}")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises this bare class
        raise InputError(f"tokenizer: {path} is not a tokenizer.json: {error}") from error


def train_bpe(rows: Iterable[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) of at most `vocab_size` ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(rows, trainer)
    return tokenizer


def collect_words(rows: Iterable[str]) -> Tokenizer:
    """Return a tokenizer of whitespace-separated words, the most frequent first, that ends each row with `<eos>`."""
    counts = Counter(word for row in rows for word in row.split())
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


def encode_rows(tokenizer: Tokenizer, rows: Sequence[str], batch_size: int = 1000) -> Iterator[list[int]]:
    """Yield the ids of each row, tokenized on its own, a batch at a time on every core."""
    for start in range(0, len(rows), batch_size):
        for encoding in tokenizer.encode_batch_fast(rows[start : start + batch_size]):
            yield encoding.ids


def save_tokenizer(tokenizer: Tokenizer, folder: Path, seq_length: int | None = None) -> list[str]:
    """Write `tokenizer.json` and the `tokenizer_config.json` with which transformers' AutoTokenizer opens it.

    Return the files' names.
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
        config["model_max_length"] = seq_length
    write_atomic(folder / TOKENIZER_FILE, tokenizer.to_str(pretty=True))
    write_atomic(folder / TOKENIZER_CONFIG_FILE, json.dumps(config, indent=2) + "\n")
    return [TOKENIZER_FILE, TOKENIZER_CONFIG_FILE]


def vocab_size(tokenizer: Tokenizer) -> int:
    return 1 + max(tokenizer.get_vocab().values())


def check_round_trip(tokenizer: Tokenizer, texts: Iterable[str]) -> None:
    pass
