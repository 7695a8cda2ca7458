"""Perplexity: of a token, of a word, and bits a byte, each with its text, context and denominator stated."""

import io
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from textgen.config import Config, EvaluationConfig
from textgen.errors import Damaged, InputError
from textgen.evaluation.protocols import DEFINITIONS, WINDOWS, Definition, Text, Window, read_as_lm_eval, read_as_stream
from textgen.files import Manifest, build_once, content_key, sha256_file, write_atomic
from textgen.model.device import autocast, choose_device
from textgen.model.find import ModelManifest
from textgen.model.loss import next_token_nats
from textgen.model.pretrained import WEIGHTS_FILE, LoadedModel, load_model
from textgen.model.transformer import LanguageModel
from textgen.text.corpus import find_raw, read_rows
from textgen.text.tokens import TextCounts, TokensManifest, load_documents, load_stream

EVALUATION_VERSION = 2  # of the protocols; a change makes every evaluation key new
LARGEST_EXPONENT = math.log(sys.float_info.max)
EVALUATED = ("validation", "test")


class SplitMetrics(BaseModel):
    """What a model makes of one split.

    `loss_nats` is the mean over `tokens_scored`. The rates for words and bytes spread that mean over all `tokens` of
    the split: word_perplexity = exp(loss_nats * tokens / (words + rows)), where a row's end counts as a word, as the
    `<eos>` of published word-level results does; bits_per_byte = loss_nats * tokens / (bytes * ln 2), bytes of the raw
    text in UTF-8. bits_per_byte is null where unknown words make the tokens an incomplete account of the bytes, and a
    perplexity where no float holds it, as that of a word in a text that has few white spaces.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss_nats: float
    token_perplexity: float | None
    word_perplexity: float | None
    byte_perplexity: float | None
    bits_per_byte: float | None
    tokens_scored: int
    tokens: int
    words: int
    rows: int
    bytes: int


class Documents(NamedTuple):
    """What a model makes of each document of a text, in order: arrays [D]."""

    nats: Tensor  # float64, of its scored tokens
    tokens: Tensor  # int64, scored
    words: Tensor  # int64
    bytes: Tensor  # int64, of the raw text in UTF-8


class Measured(NamedTuple):
    """What a model makes of a text: the means, every scored token in the order of the text, every document."""

    metrics: SplitMetrics
    token_nats: Tensor  # float32
    documents: Documents

    def write(self, path: Path) -> None:
        """Write the arrays with safetensors, as `token_nats`, `document_nats`, `document_tokens` and so on."""
        arrays = {f"document_{name}": array for name, array in self.documents._asdict().items()}
        write_atomic(path, save({"token_nats": self.token_nats, **arrays}))


class Metrics(Manifest):
    """The evaluation of one checkpoint on one corpus by one protocol.

    Beside it, a file for each split has the arrays: `token_nats` (of each scored token, in the order of the text),
    `document_nats`, `document_tokens` (scored), `document_words` and `document_bytes`.
    """

    checkpoint_sha256: str
    tokens_key: str
    protocol: str
    definition: Definition
    seq_length: int
    stride: int
    splits: dict[str, SplitMetrics]
    sha256: dict[str, str]

    def sha256_by_file(self) -> dict[str, str]:
        return self.sha256


def arrays_file(split: str) -> str:
    """Return the name of the file with a split's arrays."""
    return f"{split}.safetensors"


def read_documents(metrics: Metrics, split: str) -> Documents:
    """Return what the model makes of each document of a split."""
    arrays = load_file(metrics.folder / arrays_file(split))
    return Documents(**{name: arrays[f"document_{name}"] for name in Documents._fields})


def evaluate(checkpoint: Path, tokens: TokensManifest, config: Config) -> Metrics:
    """Measure the model in folder `checkpoint` on validation and test, once, and keep it in its `evaluations/`."""
    sha256 = sha256_file(checkpoint / WEIGHTS_FILE)
    key = evaluation_key(sha256, tokens, config)
    stride = config.stride if config.evaluation.protocol == "sliding" else config.data.seq_length

    def build(temporary: Path) -> Metrics:
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

    return build_once(evaluation_folder(checkpoint, key), Metrics, build)


def evaluation_folder(checkpoint: Path, key: str) -> Path:
    """Return where the evaluation `key` of a checkpoint is kept."""
    return checkpoint / "evaluations" / key


def evaluate_splits(
    loaded: LoadedModel, tokens: TokensManifest, evaluation: EvaluationConfig, stride: int
) -> dict[str, Measured]:
    """Measure a model on validation and test, in the context it was trained at.

    Raises:
        InputError: the protocol reads the raw text, which is no longer there.
    """
    raw = find_raw(tokens.root, tokens.raw_sha256) if evaluation.protocol == "lm-eval" else None
    measured = {}
    for name in EVALUATED:
        if raw is not None:
            text = read_as_lm_eval(loaded.tokenizer, read_rows(raw, name), loaded.seq_length)
        else:
            counts = tokens.splits[name]
            windows = WINDOWS[evaluation.protocol](counts.tokens, loaded.seq_length, stride)
            text = Text(load_stream(tokens, name), list(windows), load_documents(tokens, name), counts)
        measured[name] = measure(loaded.model, text, evaluation.batch_size, f"evaluate {name}")
    return measured


def read_tokens(folder: Path, root: Path) -> TokensManifest:
    """Return the tokens that the model of a published or a training folder was trained on.

    Raises:
        InputError: the folder does not say, or the tokens are no longer under `root`.
        Damaged: the tokens are not what they were.
    """
    try:
        home = root / "processed" / ModelManifest.read(folder).tokens_key
    except Damaged:
        raise InputError(
            f"{folder}: no sound manifest says what it was trained on; --text=FILE measures it on a text"
        ) from None
    if not home.is_dir():
        raise InputError(f"{folder}: its tokens are not at {home}; --root=FOLDER or --text=FILE")
    return TokensManifest.read(home)


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
        rows = list(io.StringIO(text_file.read_text("utf-8")))  # at \n alone, as the corpus is cut
    except OSError as error:
        raise InputError(f"--text {text_file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--text {text_file}: byte {error.start} is not UTF-8") from None
    try:
        return evaluate_rows(loaded, rows, evaluation)
    except InputError as error:
        raise InputError(f"--text {text_file}: {error}") from None


def evaluate_rows(loaded: LoadedModel, rows: list[str], evaluation: EvaluationConfig) -> Measured:
    """Measure a model on a text, with the stride of `evaluation` or half of the model's context.

    Raises:
        InputError: the text holds fewer than two tokens.
    """
    if evaluation.protocol == "lm-eval":
        text = read_as_lm_eval(loaded.tokenizer, rows, loaded.seq_length)
    else:
        text = read_as_stream(loaded.tokenizer, rows, evaluation, loaded.seq_length)
    if text.counts.tokens < 2:
        raise InputError(f"{text.counts.tokens} tokens; perplexity needs two")
    return measure(loaded.model, text, evaluation.batch_size, "evaluate text")


def measure(model: LanguageModel, text: Text, batch_size: int, label: str | None = None) -> Measured:
    """Score a text; `label` names a progress bar."""
    nats_S = score_tokens(model, text.ids_N, text.windows, batch_size, label)
    document_N = torch.arange(len(text.documents["tokens"])).repeat_interleave(text.documents["tokens"])
    document_S = document_N[scored_positions(text.windows)]
    nats_D = torch.zeros(len(text.documents["tokens"]), dtype=torch.float64).index_add_(0, document_S, nats_S.double())
    tokens_D = document_S.bincount(minlength=len(nats_D))
    found = Documents(nats_D, tokens_D, text.documents["words"], text.documents["bytes"])
    return Measured(summarize(nats_D.sum().item(), len(nats_S), text.counts), nats_S, found)


def scored_positions(windows: list[Window]) -> Tensor:
    """Return where in the stream the tokens are that the windows score, in order."""
    starts_W, inputs_W, scored_W = torch.tensor(windows, dtype=torch.int64).view(-1, 3).T
    return _ranges(starts_W + inputs_W - scored_W + 1, scored_W)


def _ranges(starts_W: Tensor, lengths_W: Tensor) -> Tensor:
    """Return the numbers of several ranges, one range after the other."""
    before_W = lengths_W.cumsum(0) - lengths_W
    return torch.arange(int(lengths_W.sum())) + (starts_W - before_W).repeat_interleave(lengths_W)


def score(
    model: LanguageModel,
    stream_N: Tensor,
    windows: list[Window],
    batch_size: int,
    between_batches: Callable[[], None] = lambda: None,
) -> tuple[float, int]:
    """Return the total negative log-likelihood in nats of what the windows score, and how many tokens that is."""
    nats_S = score_tokens(model, stream_N, windows, batch_size, between_batches=between_batches)
    return nats_S.double().sum().item(), len(nats_S)


@torch.no_grad()
def score_tokens(
    model: LanguageModel,
    stream_N: Tensor,
    windows: list[Window],
    batch_size: int,
    label: str | None = None,
    between_batches: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return the negative log-likelihood in nats of each token that the windows score, in order: fp32 [S].

    Windows are batched with those of about their length, and read on to the length of the longest: a token's logits do
    not depend on what comes after it. `label` names a progress bar.
    """
    device, last = next(model.parameters()).device, len(stream_N) - 1
    windows_W3 = torch.tensor(windows, dtype=torch.int64).view(-1, 3)
    order_W = windows_W3[:, 1].argsort(descending=True, stable=True)
    nats, is_scored = [torch.empty(0, device=device)], [torch.empty(0, dtype=torch.bool)]
    with tqdm(total=len(windows), desc=label, unit="window", disable=True if label is None else None) as progress:
        for batch_B3 in windows_W3[order_W].split(batch_size) if windows else ():
            starts_B1, inputs_B1, scored_B1 = batch_B3.T[:, :, None]
            reach_S = torch.arange(int(inputs_B1.max()) + 1)
            ids_BS = stream_N[(starts_B1 + reach_S).clamp(max=last)].long().to(device)
            nats.append(next_token_nats(model, ids_BS[:, :-1], ids_BS[:, 1:]).flatten())
            input_T = reach_S[:-1]
            is_scored.append(((input_T < inputs_B1) & (input_T >= inputs_B1 - scored_B1)).flatten())
            progress.update(len(batch_B3))
            between_batches()
    scored_W = windows_W3[:, 2]
    nats_S = torch.empty(int(scored_W.sum()))
    places_S = _ranges((scored_W.cumsum(0) - scored_W)[order_W], scored_W[order_W])
    nats_S[places_S] = torch.cat(nats).cpu()[torch.cat(is_scored)]  # copied once: a copy waits for the GPU
    return nats_S


def summarize(nats: float, scored: int, split: TextCounts) -> SplitMetrics:
    """Return the metrics of a split of which `scored` tokens took `nats` in all."""
    loss_nats = nats / scored
    split_nats = loss_nats * split.tokens
    word_nats = split_nats / (split.words + split.rows)
    byte_nats = split_nats / split.text_bytes if split.unknown == 0 else None
    return SplitMetrics(
        loss_nats=loss_nats,
        token_perplexity=_exp(loss_nats),
        word_perplexity=_exp(word_nats),
        byte_perplexity=None if byte_nats is None else _exp(byte_nats),
        bits_per_byte=None if byte_nats is None else byte_nats / math.log(2),
        tokens_scored=scored,
        tokens=split.tokens,
        words=split.words,
        rows=split.rows,
        bytes=split.text_bytes,
    )


def _exp(nats: float) -> float | None:
    return math.exp(nats) if nats < LARGEST_EXPONENT else None
