"""Perplexity: of a token, of a word, and bits a byte, each with its text, context and denominator stated."""

import io
from collections.abc import Sequence
from pathlib import Path

import torch

from textgen.config import Config, EvaluationConfig
from textgen.errors import Damaged, InputError
from textgen.evaluation.protocols import DEFINITIONS, read_as_lm_eval, read_as_stream, read_split, read_tokens_split
from textgen.evaluation.scoring import Measured, Metrics, arrays_file, measure
from textgen.files import content_key, sha256_file
from textgen.model.device import autocast, choose_device, share_cores
from textgen.model.find import ModelManifest
from textgen.model.pretrained import WEIGHTS_FILE, LoadedModel, load_model
from textgen.sections import HELD_OUT
from textgen.storage import Storage
from textgen.text.corpus import RawManifest, find_raw, read_units
from textgen.text.documents import mark_rows
from textgen.text.readers import BYTE_ORDER_MARK
from textgen.text.stream import encode_stream
from textgen.text.tokens import TokensManifest

EVALUATION_VERSION = 2  # of the protocols; a change makes every evaluation key new


def evaluate(checkpoint: Path, tokens: TokensManifest, config: Config) -> Metrics:
    """Measure the model in folder `checkpoint` on validation and test, once, and keep it in its `evaluations/`."""
    sha256 = sha256_file(checkpoint / WEIGHTS_FILE)
    key = evaluation_key(sha256, tokens, config)
    stride = config.stride if config.evaluation.protocol == "sliding" else config.data.seq_length

    def build(temporary: Path) -> Metrics:
        share_cores()
        device = choose_device(config.training.device)
        with autocast(device, config.training.precision):
            measured = evaluate_splits(load_model(checkpoint, device), tokens, config.evaluation, stride)
        for name, split in measured.items():
            split.write(temporary / arrays_file(name))
        return Metrics(
            key=key,
            checkpoint_sha256=sha256,
            tokens_key=tokens.key,
            protocol=config.evaluation.protocol,
            definition=DEFINITIONS[config.evaluation.protocol],
            seq_length=config.data.seq_length,
            stride=stride,
            splits={name: split.metrics for name, split in measured.items()},
            sha256={arrays_file(name): sha256_file(temporary / arrays_file(name)) for name in measured},
        )

    return Storage(config.storage).build(checkpoint / "evaluations" / key, Metrics, build)


def evaluate_splits(
    loaded: LoadedModel, tokens: TokensManifest, evaluation: EvaluationConfig, stride: int
) -> dict[str, Measured]:
    """Measure a model on validation and test, in the context it was trained at.

    Raises:
        InputError: the protocol reads the raw text, which is no longer there.
    """
    raw = find_raw(Storage.at(tokens.root), tokens.raw_sha256) if evaluation.protocol == "lm-eval" else None
    measured = {}
    for name in HELD_OUT:
        if raw is not None:
            text = read_as_lm_eval(loaded.tokenizer, list(read_units(raw, name)), loaded.seq_length)
        else:
            text = read_tokens_split(tokens, name, evaluation.protocol, loaded.seq_length, stride)
        measured[name] = measure(loaded.scored_by, text, evaluation.batch_size, f"evaluate {name}")
    return measured


def read_tokens(folders: Sequence[Path], storage: Storage) -> TokensManifest:
    """Return the tokens that the models of published or training folders were trained on.

    Raises:
        InputError: a folder does not say, two were trained on different tokens, or the tokens are no longer there.
        Damaged: the tokens are not what they were.
    """
    keys = [_tokens_key(folder) for folder in folders]
    for folder, key in zip(folders, keys, strict=True):
        if key != keys[0]:
            raise InputError(
                f"{folders[0]} and {folder} were trained on different tokens; --text=FILE measures them on a text"
            )
    home = storage.processed(keys[0])
    storage.bring(home, TokensManifest)
    if not home.is_dir():
        raise InputError(f"{folders[0]}: its tokens are not at {home}; --root=FOLDER or --text=FILE")
    return TokensManifest.read(home)


def _tokens_key(folder: Path) -> str:
    try:
        return ModelManifest.read(folder).tokens_key
    except Damaged:
        raise InputError(
            f"{folder}: no sound manifest says what it was trained on; --text=FILE measures it on a text"
        ) from None


def evaluation_key(checkpoint_sha256: str, tokens: TokensManifest, config: Config) -> str:
    """Return the key of an evaluation: the algorithm, the weights, the tokens and the protocol."""
    protocol = config.evaluation.key_part()
    numerics = {"device": config.training.device, "precision": config.training.precision}
    return content_key(EVALUATION_VERSION, checkpoint_sha256, tokens.key, config.data.seq_length, protocol, numerics)


def evaluate_text(loaded: LoadedModel, text_file: Path, evaluation: EvaluationConfig) -> Measured:
    """Measure a model on a text file, a row a line.

    Raises:
        InputError: the file is absent, is not UTF-8, or holds fewer than two tokens.
    """
    try:
        text = text_file.read_bytes().decode("utf-8").removeprefix(BYTE_ORDER_MARK)  # as a training reads it
        rows = list(io.StringIO(text))  # cut at \n alone, as the corpus is
    except OSError as error:
        raise InputError(f"--text {text_file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--text {text_file}: byte {error.start} is not UTF-8") from None
    try:
        return evaluate_rows(loaded, rows, evaluation)
    except InputError as error:
        raise InputError(f"--text {text_file}: {error}") from None


def evaluate_split(
    loaded: LoadedModel, raw: RawManifest, split: str, ends: bool, evaluation: EvaluationConfig
) -> Measured:
    """Measure a model on a split; `ends`: whether it was trained with an end of text after each document."""
    text = read_split(loaded.tokenizer, raw, split, ends, evaluation, loaded.seq_length)
    return measure(loaded.scored_by, text, evaluation.batch_size, f"evaluate {split}")


def evaluate_rows(loaded: LoadedModel, rows: list[str], evaluation: EvaluationConfig) -> Measured:
    """Measure a model on a text, with the stride of `evaluation` or half of the model's context.

    Raises:
        InputError: the text holds fewer than two tokens.
    """
    if evaluation.protocol == "lm-eval":
        text = read_as_lm_eval(loaded.tokenizer, rows, loaded.seq_length)
    else:
        text = read_as_stream(
            encode_stream(loaded.tokenizer, mark_rows(rows), torch.int32), evaluation, loaded.seq_length
        )
    if text.counts.tokens < 2:
        raise InputError(f"{text.counts.tokens} tokens; perplexity needs two")
    return measure(loaded.scored_by, text, evaluation.batch_size, "evaluate text")
