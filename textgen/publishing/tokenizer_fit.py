"""How well a tokenizer that is kept from week to week fits new text, and whether a new one would pay."""

import torch
from tokenizers import Tokenizer

from textgen.config import Config
from textgen.errors import Damaged
from textgen.files import Manifest, content_key, read_json
from textgen.publishing.drift import sample
from textgen.publishing.resolution import TOKENIZER, Resolution, folder_of
from textgen.publishing.version import LINEAGE_FILE
from textgen.storage import Storage
from textgen.text.corpus import RawManifest, read_parts
from textgen.text.stream import encode_stream
from textgen.text.tokenizer import as_parts, train_bpe
from textgen.text.tokens import TokensManifest, load_manifest_tokenizer

FIT_VERSION = 1  # of the figures; a change makes every key new
SAMPLE_BYTES = 1 << 21  # of train, that the new BPE learns from, and of validation, that both encode
# The share of the tokens that is worth a start from zero, which a new vocabulary needs. A new tokenizer saves 0.5% on
# more text of the same kind, and 19% on another kind (tests/benchmarks/weekly.py); drift calls 5% a change.
PAYS = 0.05


class TokenizerFit(Manifest):
    """A tokenizer that a run took from a version, on the text of the run."""

    made_for: str  # the version that the tokenizer was made for, as NAME@v1
    raw_key: str
    bytes_per_token: float  # of train
    bytes_per_token_then: float | None  # of the train split that it learned from; None of versions that record none
    saving: float | None  # the share of tokens that a new BPE of as many ids would save; None for words

    def sha256_by_file(self) -> dict[str, str]:
        return {}


def bytes_per_token(tokens: TokensManifest) -> float:
    """Return how many bytes of the train split a token stands for."""
    train = tokens.splits["train"]
    return train.text_bytes / max(1, train.tokens)


def measure_fit(
    resolution: Resolution | None, raw: RawManifest, tokens: TokensManifest, config: Config, storage: Storage
) -> TokenizerFit | None:
    """Return how well the tokenizer that a run took from a version fits its text; None where it made its own.

    It is measured once and kept in data/drift.
    """
    version = resolution.versions.get(TOKENIZER) if resolution is not None else None
    if version is None:
        return None
    made_for, then = origin_of(version, storage)
    key = content_key(FIT_VERSION, made_for, tokens.key)

    def build(_: object) -> TokenizerFit:
        storage.bring(raw.folder, RawManifest)
        storage.bring(tokens.folder, TokensManifest)
        by_words = config.tokenizer.kind == "word"
        return TokenizerFit(
            key=key, made_for=made_for, raw_key=raw.key, bytes_per_token=bytes_per_token(tokens),
            bytes_per_token_then=then, saving=None if by_words else measure_saving(raw, tokens),
        )  # fmt: skip

    return storage.build(storage.drift(key), TokenizerFit, build)


def origin_of(version: str, storage: Storage) -> tuple[str, float | None]:
    """Return the version that the tokenizer of a version was made for, and the bytes a token of its text."""
    try:
        lineage = read_json(folder_of(version, storage) / LINEAGE_FILE)
        if (kept := lineage["tokenizer"]) is not None:
            return kept["made_for"], kept["bytes_per_token_then"]
        return version, lineage["tokens"]["bytes_per_token"]
    except (Damaged, KeyError, TypeError):  # as of an older commit, which recorded none
        return version, None


def measure_saving(raw: RawManifest, tokens: TokensManifest) -> float:
    """Return the share of tokens that a new BPE of as many ids would save, learned from train, on validation."""
    learned_from, encoded = (
        sample(read_parts(raw, split), raw.splits[split].text_bytes, SAMPLE_BYTES) for split in ("train", "validation")
    )
    kept, new = load_manifest_tokenizer(tokens), train_bpe(learned_from, tokens.vocab_size)
    before, after = (count_tokens(tokenizer, encoded) for tokenizer in (kept, new))
    return 1 - after / max(1, before)


def count_tokens(tokenizer: Tokenizer, texts: list[str]) -> int:
    """Return the number of tokens of texts."""
    return encode_stream(tokenizer, as_parts(texts), torch.int32).counts.tokens


def fit_lines(fit: TokenizerFit) -> list[str]:
    """Return how well the tokenizer fits, and whether a new one would pay."""
    lines = [f"that of {fit.made_for}, {in_bytes(fit)}"]
    if fit.saving is not None and fit.saving < PAYS:
        lines.append(f"a new one would need {'no' if fit.saving < 0.001 else f'{fit.saving:.1%}'} fewer tokens")
    elif fit.saving is not None:
        lines.append(
            f"a new one would need {fit.saving:.0%} fewer tokens: for one run, set tokenizer.path=null "
            "training.init_from=null"
        )
    return lines


def fit_in_words(fit: TokenizerFit) -> str:
    """Return the lines of `fit_lines` as one."""
    return "; ".join(fit_lines(fit))


def in_bytes(fit: TokenizerFit) -> str:
    """Return the bytes a token of this text, and of the one that the tokenizer learned from."""
    now = f"{fit.bytes_per_token:.2f} bytes a token"
    if (then := fit.bytes_per_token_then) is None:
        return now
    return f"{now}, {then:.2f} on the text that it learned from"
