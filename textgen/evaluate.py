"""Perplexity: of a token, of a word, and bits a byte, each with its text, context and denominator stated."""

import io
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from textgen import documents
from textgen.config import Config, EvaluationConfig
from textgen.device import autocast, choose_device
from textgen.export import WEIGHTS_FILE, LoadedModel, load_model
from textgen.files import InputError, Manifest, build_once, content_key, sha256_file, write_atomic
from textgen.loss import next_token_nats
from textgen.model import LanguageModel
from textgen.tokens import TextCounts, TokensManifest, block_count, encode_stream, load_documents, load_stream

EVALUATION_VERSION = 2  # of the protocols; a change makes every evaluation key new
LARGEST_EXPONENT = math.log(sys.float_info.max)
EVALUATED = ("validation", "test")

Window = tuple[int, int, int]  # where it starts in the stream, its inputs, how many of its last targets are scored


class SplitMetrics(BaseModel):
    """What a model makes of one split.

    `loss_nats` is the mean over `tokens_scored`. The rates for words and bytes spread that mean over all `tokens` of
    the split: word_perplexity = exp(loss_nats * tokens / (words + rows)), where a row's end counts as a word, as the
    `<eos>` of published word-level results does; bits_per_byte = loss_nats * tokens / (bytes * ln 2), bytes of the raw
    text in UTF-8. bits_per_byte is null where unknown words make the tokens an incomplete account of the bytes,
    word_perplexity where the text has so few white spaces that no float holds it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss_nats: float
    token_perplexity: float
    word_perplexity: float | None
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


class Text(NamedTuple):
    """What a protocol reads: a stream of ids, the windows over it, and what its documents and the whole hold."""

    ids_N: Tensor
    windows: list[Window]
    documents: dict[str, Tensor]  # int64 [D]: `tokens` in the stream, `words`, `bytes`
    counts: TextCounts


class Metrics(Manifest):
    """The evaluation of one checkpoint on one corpus by one protocol.

    Beside it, a file for each split has the arrays: `token_nats` (of each scored token, in the order of the text),
    `document_nats`, `document_tokens` (scored), `document_words` and `document_bytes`.
    """

    checkpoint_sha256: str
    tokens_key: str
    protocol: str
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
    """Measure a model on validation and test, in the context it was trained at."""
    measured = {}
    for name in EVALUATED:
        counts = tokens.splits[name]
        windows = list(WINDOWS[evaluation.protocol](counts.tokens, loaded.seq_length, stride))
        text = Text(load_stream(tokens, name), windows, load_documents(tokens, name), counts)
        measured[name] = measure(loaded.model, text, evaluation.batch_size, f"evaluate {name}")
    return measured


def evaluation_key(checkpoint_sha256: str, tokens: TokensManifest, config: Config) -> str:
    """Return the key of an evaluation: the algorithm, the weights, the tokens and the protocol."""
    protocol = config.evaluation.model_dump(mode="json")
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
    stream = encode_stream(loaded.tokenizer, rows, torch.int32, "text")
    length = len(stream.ids_N)
    if length < 2:
        raise InputError(f"{length} tokens; perplexity needs two")
    seq_length = min(loaded.seq_length, length - 1)
    windows = WINDOWS[evaluation.protocol](length, seq_length, evaluation.stride or max(1, seq_length // 2))
    found = documents.count(rows, stream.row_tokens)
    counts = TextCounts(
        tokens=length,
        unknown=stream.unknown,
        rows=len(rows),
        words=int(found["words"].sum()),
        text_bytes=int(found["bytes"].sum()),
    )
    return measure(loaded.model, Text(stream.ids_N, list(windows), found, counts), evaluation.batch_size, "evaluate")


def measure(model: LanguageModel, text: Text, batch_size: int, label: str | None = None) -> Measured:
    """Score a text; `label` names a progress bar."""
    nats_S = score_tokens(model, text.ids_N, text.windows, batch_size, label)
    document_N = torch.arange(len(text.documents["tokens"])).repeat_interleave(text.documents["tokens"])
    document_S = document_N[scored_positions(text.windows)]
    nats_D = torch.zeros(len(text.documents["tokens"]), dtype=torch.float64).index_add_(0, document_S, nats_S.double())
    tokens_D = document_S.bincount(minlength=len(nats_D))
    found = Documents(nats_D, tokens_D, text.documents["words"], text.documents["bytes"])
    return Measured(summarize(nats_D.sum().item(), len(nats_S), text.counts), nats_S, found)


def blocks(tokens: int, seq_length: int, stride: int | None = None, limit: int | None = None) -> Iterator[Window]:
    """Yield the disjoint blocks of a stream, all of each scored; with a `limit`, that many spread over the stream."""
    count = block_count(tokens, seq_length)
    taken = count if limit is None else min(limit, count)
    for number in range(taken):
        yield (number * count // taken) * seq_length, seq_length, seq_length


def sliding_windows(tokens: int, seq_length: int, stride: int) -> Iterator[Window]:
    """Yield windows that move on by `stride` and score what no window before them scored, so every token but the first.

    A scored token has at least `seq_length - stride` tokens of context where the stream has them. The last window
    reaches back to its full length.
    """
    end = min(seq_length, tokens - 1)
    yield 0, end, end
    while end < tokens - 1:
        step = min(stride, tokens - 1 - end)
        end += step
        yield end - seq_length, seq_length, step


WINDOWS = {"sliding": sliding_windows, "blocks": blocks}


def scored_positions(windows: list[Window]) -> Tensor:
    """Return where in the stream the tokens are that the windows score, in order."""
    starts_W, inputs_W, scored_W = torch.tensor(windows).view(-1, 3).T
    first_W = starts_W + inputs_W - scored_W + 1
    before_W = scored_W.cumsum(0) - scored_W  # scored in the windows before
    return torch.arange(int(scored_W.sum())) + (first_W - before_W).repeat_interleave(scored_W)


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

    Windows of one length are batched together; `label` names a progress bar.
    """
    device = next(model.parameters()).device
    nats, is_scored = [torch.empty(0, device=device)], [torch.empty(0, dtype=torch.bool)]
    with tqdm(total=len(windows), desc=label, unit="window", disable=True if label is None else None) as progress:
        for batch in _batches(windows, batch_size):
            length = batch[0][1]
            starts_B1 = torch.tensor([start for start, _, _ in batch])[:, None]
            ids_BS = stream_N[starts_B1 + torch.arange(length + 1)].long().to(device)
            nats.append(next_token_nats(model, ids_BS[:, :-1], ids_BS[:, 1:]).flatten())
            scored_B1 = torch.tensor([count for _, _, count in batch])[:, None]
            is_scored.append((torch.arange(length) >= length - scored_B1).flatten())
            progress.update(len(batch))
            between_batches()
    return torch.cat(nats).cpu()[torch.cat(is_scored)]  # copied once: a copy waits for the GPU


def _batches(windows: list[Window], batch_size: int) -> Iterator[list[Window]]:
    batch: list[Window] = []
    for window in windows:
        if batch and (len(batch) == batch_size or window[1] != batch[0][1]):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def summarize(nats: float, scored: int, split: TextCounts) -> SplitMetrics:
    """Return the metrics of a split of which `scored` tokens took `nats` in all."""
    loss_nats = nats / scored
    split_nats = loss_nats * split.tokens
    word_nats = split_nats / (split.words + split.rows)
    return SplitMetrics(
        loss_nats=loss_nats,
        token_perplexity=math.exp(loss_nats),
        word_perplexity=math.exp(word_nats) if word_nats < LARGEST_EXPONENT else None,
        bits_per_byte=split_nats / (split.text_bytes * math.log(2)) if split.unknown == 0 else None,
        tokens_scored=scored,
        tokens=split.tokens,
        words=split.words,
        rows=split.rows,
        bytes=split.text_bytes,
    )
