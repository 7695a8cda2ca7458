"""Scores of a text: the loss in nats of each token and document; perplexity of a token and of a word, bits a byte."""

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save
from torch import Tensor

from textgen.bar import Bar
from textgen.files import Manifest, write_atomic
from textgen.model.loss import Scorer, device_of, score_batch
from textgen.model.transformer import LanguageModel
from textgen.text.stream import TextCounts

Window = tuple[int, int, int]  # where it starts in the stream, its inputs, how many of its last targets are scored

SUMMED_WINDOWS = 1 << 10  # at once
COPIED_TOKENS = 1 << 20  # from the device at once
LARGEST_EXPONENT = math.log(sys.float_info.max)
FIGURES = {  # of a split, that people compare
    "loss_nats": "loss (nats a token)",
    "token_perplexity": "token perplexity",
    "word_perplexity": "word perplexity",
    "bits_per_byte": "bits a byte",
}
LARGEST_PLAIN = 1e6  # perplexity that is written out


class Definition(BaseModel):
    """What a perplexity is measured on. Two can be compared where all three are the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    context: str
    denominators: str


class Text(NamedTuple):
    """What a protocol reads: a stream of ids, the windows over it, and what its documents and the whole hold."""

    ids_N: Tensor
    windows: list[Window]
    documents: dict[str, Tensor]  # int64 [D]: `tokens` in the stream, `words`, `bytes`
    counts: TextCounts


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


def measure(model: LanguageModel | Scorer, text: Text, batch_size: int, label: str | None = None) -> Measured:
    """Score a text; `label` names a progress bar."""
    nats_S = score_tokens(model, text.ids_N, text.windows, batch_size, label)
    tokens_D = torch.zeros_like(text.documents["tokens"])
    nats_D, done = tokens_D.double(), 0
    for positions_S, document_S in scored_parts(text):
        nats_D.index_add_(0, document_S, nats_S[done : done + len(positions_S)].double())
        tokens_D.index_add_(0, document_S, torch.ones_like(document_S))
        done += len(positions_S)
    found = Documents(nats_D, tokens_D, text.documents["words"], text.documents["bytes"])
    return Measured(summarize(nats_D.sum().item(), len(nats_S), text.counts), nats_S, found)


def scored_parts(text: Text) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield where in the stream the scored tokens are and which document each is of, in order, some at a time."""
    ends_D = text.documents["tokens"].cumsum(0)
    for start in range(0, len(text.windows), SUMMED_WINDOWS):
        positions_S = scored_positions(text.windows[start : start + SUMMED_WINDOWS])
        yield positions_S, torch.searchsorted(ends_D, positions_S, right=True)


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
    model: LanguageModel | Scorer,
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
    device = device_of(model)
    last = len(stream_N) - 1
    windows_W3 = torch.tensor(windows, dtype=torch.int64).view(-1, 3)
    scored_W = windows_W3[:, 2]
    first_W = scored_W.cumsum(0) - scored_W  # the place in the result of the first token that a window scores
    order_W = windows_W3[:, 1].argsort(descending=True, stable=True)
    nats_S = torch.empty(int(scored_W.sum()))
    waiting: list[tuple[Tensor, Tensor, Tensor]] = []  # losses, which of them are scored, their places
    with Bar(label or "", len(windows), "window", shown=label is not None) as bar:
        for batch_B in order_W.split(batch_size) if windows else ():
            starts_B1, inputs_B1, scored_B1 = windows_W3[batch_B].T[:, :, None]
            reach_S = torch.arange(int(inputs_B1.max()) + 1)
            ids_BS = stream_N[(starts_B1 + reach_S).clamp(max=last)].long().to(device)
            nats = score_batch(model, ids_BS[:, :-1], ids_BS[:, 1:]).flatten()
            input_T = reach_S[:-1]
            is_scored = ((input_T < inputs_B1) & (input_T >= inputs_B1 - scored_B1)).flatten()
            waiting.append((nats, is_scored, _ranges(first_W[batch_B], scored_W[batch_B])))
            if len(waiting) * len(nats) >= COPIED_TOKENS:
                _copy(waiting, nats_S)
                waiting = []
            bar.update(len(batch_B))
            between_batches()
    _copy(waiting, nats_S)
    return nats_S


def _copy(waiting: list[tuple[Tensor, Tensor, Tensor]], nats_S: Tensor) -> None:
    """Copy the losses of several batches to their places, from the device at once: each copy waits for it."""
    if waiting:
        nats, is_scored, places = map(torch.cat, zip(*waiting, strict=True))
        nats_S[places] = nats.cpu()[is_scored]


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


def figure_in_words(name: str, value: float | None) -> str:
    """Return a figure of a split with the digits that it deserves."""
    if value is None:
        return "-"
    if name not in ("token_perplexity", "word_perplexity"):
        return f"{value:.4f}"
    return f"{value:,.2f}" if value < LARGEST_PLAIN else f"{value:.1e}"


def _exp(nats: float) -> float | None:
    return math.exp(nats) if nats < LARGEST_EXPONENT else None
