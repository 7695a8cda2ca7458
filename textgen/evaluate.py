"""Perplexity: of a token, of a word, and bits a byte, each with its text, context and denominator stated."""

import io
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from tqdm import tqdm

from textgen.config import Config, EvaluationConfig
from textgen.device import autocast, choose_device
from textgen.export import WEIGHTS_FILE, LoadedModel, load_model
from textgen.files import InputError, Manifest, build_once, content_key, sha256_file
from textgen.loss import next_token_nats
from textgen.model import LanguageModel
from textgen.tokens import TextCounts, TokensManifest, block_count, encode_stream, load_stream

EVALUATION_VERSION = 1  # of the protocols; a change makes every evaluation key new
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


class Metrics(Manifest):
    """The evaluation of one checkpoint on one corpus by one protocol."""

    checkpoint_sha256: str
    tokens_key: str
    protocol: str
    seq_length: int
    stride: int
    splits: dict[str, SplitMetrics]

    def sha256_by_file(self) -> dict[str, str]:
        return {}


def evaluate(checkpoint: Path, tokens: TokensManifest, config: Config) -> Metrics:
    """Measure the model in folder `checkpoint` on validation and test, once, and keep it in its `evaluations/`."""
    sha256 = sha256_file(checkpoint / WEIGHTS_FILE)
    key = evaluation_key(sha256, tokens, config)
    stride = config.stride if config.evaluation.protocol == "sliding" else config.data.seq_length

    def measure(_: Path) -> Metrics:
        device = choose_device(config.training.device)
        with autocast(device, config.training.precision):
            splits = evaluate_splits(load_model(checkpoint, device), tokens, config.evaluation, stride)
        return Metrics(
            key=key,
            checkpoint_sha256=sha256,
            tokens_key=tokens.key,
            protocol=config.evaluation.protocol,
            seq_length=config.data.seq_length,
            stride=stride,
            splits=splits,
        )

    return build_once(evaluation_folder(checkpoint, key), Metrics, measure)


def evaluation_folder(checkpoint: Path, key: str) -> Path:
    """Return where the evaluation `key` of a checkpoint is kept."""
    return checkpoint / "evaluations" / key


def evaluate_splits(
    loaded: LoadedModel, tokens: TokensManifest, evaluation: EvaluationConfig, stride: int
) -> dict[str, SplitMetrics]:
    """Measure a model on validation and test, in the context it was trained at."""
    splits = {}
    for name in EVALUATED:
        split = tokens.splits[name]
        windows = list(WINDOWS[evaluation.protocol](split.tokens, loaded.seq_length, stride))
        ids_N = load_stream(tokens, name)
        nats, scored = score(loaded.model, ids_N, windows, evaluation.batch_size, f"evaluate {name}")
        splits[name] = summarize(nats, scored, split)
    return splits


def evaluation_key(checkpoint_sha256: str, tokens: TokensManifest, config: Config) -> str:
    """Return the key of an evaluation: the algorithm, the weights, the tokens and the protocol."""
    protocol = config.evaluation.model_dump(mode="json")
    numerics = {"device": config.training.device, "precision": config.training.precision}
    return content_key(EVALUATION_VERSION, checkpoint_sha256, tokens.key, config.data.seq_length, protocol, numerics)


def evaluate_text(loaded: LoadedModel, text_file: Path, evaluation: EvaluationConfig) -> SplitMetrics:
    """Measure a model on a text file, a row a line, with a stride of half its context.

    Raises:
        InputError: the file is absent, is not UTF-8, or holds fewer than two tokens.
    """
    try:
        rows = list(io.StringIO(text_file.read_text("utf-8")))  # at \n alone, as the corpus is cut
    except OSError as error:
        raise InputError(f"--text {text_file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--text {text_file}: byte {error.start} is not UTF-8") from None
    ids_N, unknown = encode_stream(loaded.tokenizer, rows, torch.int32, "text")
    if len(ids_N) < 2:
        raise InputError(f"--text {text_file}: {len(ids_N)} tokens; perplexity needs two")
    seq_length = min(loaded.seq_length, len(ids_N) - 1)
    windows = WINDOWS[evaluation.protocol](len(ids_N), seq_length, max(1, seq_length // 2))
    nats, scored = score(loaded.model, ids_N, list(windows), evaluation.batch_size, "evaluate text")
    words = sum(len(row.split()) for row in rows)
    text_bytes = sum(len(row.encode()) for row in rows)
    counts = TextCounts(tokens=len(ids_N), unknown=unknown, rows=len(rows), words=words, text_bytes=text_bytes)
    return summarize(nats, scored, counts)


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


@torch.no_grad()
def score(
    model: LanguageModel,
    stream_N: Tensor,
    windows: list[Window],
    batch_size: int,
    label: str | None = None,
    between_batches: Callable[[], None] = lambda: None,
) -> tuple[float, int]:
    """Return the total negative log-likelihood in nats of what the windows score, and how many tokens that is.

    Windows of one length are batched together; `label` names a progress bar.
    """
    device = next(model.parameters()).device
    total_nats, scored = torch.zeros((), dtype=torch.float64, device=device), 0
    with tqdm(total=len(windows), desc=label, unit="window", disable=True if label is None else None) as progress:
        for batch in _batches(windows, batch_size):
            length = batch[0][1]
            starts_B1 = torch.tensor([start for start, _, _ in batch])[:, None]
            ids_B1 = stream_N[starts_B1 + torch.arange(length + 1)].long().to(device)
            nats_BT = next_token_nats(model, ids_B1[:, :-1], ids_B1[:, 1:])
            counted_B1 = torch.tensor([count for _, _, count in batch], device=device)[:, None]
            is_scored_BT = torch.arange(length, device=device) >= length - counted_B1
            total_nats += (nats_BT.double() * is_scored_BT).sum()
            scored += sum(count for _, _, count in batch)
            progress.update(len(batch))
            between_batches()
    return total_nats.item(), scored


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
