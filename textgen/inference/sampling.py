"""Sampling: logits become the next token, by small pure functions of one sequence's logits [V].

They apply in transformers' order: penalties, temperature, top-k, top-p, min-p. What is drawn depends on the seed, the
number of the choice and the place in the text alone, and so on nothing else that runs at the same time.
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

LOWEST_TEMPERATURE = 1e-3  # below which a logit over it may be no finite number
FIRST_CANDIDATES = 1024  # logits that are sorted for top-p before all of them are


class SamplingConfig(BaseModel):
    """How the next tokens are drawn, and where they end.

    Temperature 0 takes the likeliest. top_k 0, top_p 1 and min_p 0 keep every token. A repetition penalty divides the
    positive logits of the tokens that are in the prompt or in what follows, and multiplies their negative ones; the
    other two are subtracted from the logits of those in what follows, once, and once for each time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_tokens: int = Field(100, ge=0)
    temperature: float = Field(1.0, ge=0)
    top_k: int = Field(0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=100)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    stop: tuple[str, ...] = ()
    seed: int | None = Field(None, ge=0, lt=2**63)

    @property
    def takes_likeliest(self) -> bool:
        """Whether the next token is the likeliest by the model as it is."""
        return self.temperature == 0 and not self._penalizes

    @property
    def draws_from_all(self) -> bool:
        """Whether the next token is drawn from the model's distribution as it is, but for the temperature."""
        keeps_all = (self.top_k, self.top_p, self.min_p) == (0, 1, 0)
        return self.temperature >= LOWEST_TEMPERATURE and keeps_all and not self._penalizes

    @property
    def _penalizes(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    @field_validator("stop")
    @classmethod
    def no_empty_stop(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("a stop string is empty")
        return stop


class LogProbs(NamedTuple):
    """The log-probability of a token, in nats, by the model as it is, and those of the likeliest tokens, in order."""

    id: int
    nats: float
    top: list[tuple[int, float]]


def uniform(seed: int, choice: int, place: int) -> float:
    """Return a number from 0 to 1, without 1, that depends on these three alone."""
    digest = hashlib.blake2b(struct.pack("<QQQ", seed, choice, place), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def likeliest(logits_BV: Tensor) -> list[int]:
    """Return the likeliest token of each row, or the first whose logit is not a number."""
    if logits_BV.device.type == "cpu":
        return logits_BV.numpy().argmax(-1).tolist()  # in a fifth of the time of torch's
    return logits_BV.argmax(-1).tolist()


def sample(
    logits_V: Tensor, sampling: SamplingConfig, prompt_ids: Sequence[int], ids: Sequence[int], number: float
) -> int:
    """Return the next token of a prompt and the `ids` that follow it; `number`, from 0 to 1, chooses it."""
    logits_V = penalize(logits_V, sampling, prompt_ids, ids)
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    scaled_V = logits_V / sampling.temperature
    if not scaled_V.isfinite().all():  # a temperature that is nearly 0
        return int(logits_V.argmax())
    return draw(keep(scaled_V, sampling)[None], [number])[0]


def keep(logits_V: Tensor, sampling: SamplingConfig) -> Tensor:
    """Return the logits with those of the tokens that are not to be drawn at -inf."""
    logits_V = keep_top_k(logits_V, sampling.top_k)
    return keep_min_p(keep_top_p(logits_V, sampling.top_p), sampling.min_p)


def draw(logits_BV: Tensor, numbers: Sequence[float]) -> list[int]:
    """Return for each row the token in whose part of the line from 0 to 1 its number lies.

    The parts are the probabilities.
    """
    ends_BV = logits_BV.softmax(-1).cumsum(-1, dtype=torch.float64)
    numbers_B1 = torch.tensor(numbers, dtype=torch.float64, device=ends_BV.device)[:, None]
    places_B1 = torch.searchsorted(ends_BV, numbers_B1 * ends_BV[:, -1:], right=True)
    return places_B1[:, 0].clamp(max=ends_BV.shape[1] - 1).tolist()


def penalize(logits_V: Tensor, sampling: SamplingConfig, prompt_ids: Sequence[int], ids: Sequence[int]) -> Tensor:
    """Return the logits with the three penalties (repetition: Keskar et al. 2019, arXiv:1909.05858)."""
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted({*prompt_ids, *ids}), device=logits_V.device)
        old = logits_V[seen]
        new = torch.where(old < 0, old * sampling.repetition_penalty, old / sampling.repetition_penalty)
        logits_V = logits_V.index_copy(0, seen, new)
    if ids and (sampling.presence_penalty or sampling.frequency_penalty):
        seen, counts = torch.tensor(ids, device=logits_V.device).unique(return_counts=True)
        penalties = sampling.presence_penalty + sampling.frequency_penalty * counts
        logits_V = logits_V.index_add(0, seen, -penalties.to(logits_V.dtype))
    return logits_V


def keep_top_k(logits_V: Tensor, top_k: int) -> Tensor:
    """Return the logits with all below the `top_k`-th largest at -inf (Fan et al. 2018, arXiv:1805.04833)."""
    if top_k == 0:
        return logits_V
    smallest_kept = logits_V.topk(min(top_k, logits_V.numel())).values[-1]
    return logits_V.masked_fill(logits_V < smallest_kept, -torch.inf)


def keep_top_p(logits_V: Tensor, top_p: float) -> Tensor:
    """Return the logits with all outside the smallest set of probability `top_p` at -inf.

    Nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751).
    """
    if top_p == 1:
        return logits_V
    probabilities_V = logits_V.softmax(-1)
    size = logits_V.numel()
    for candidates in (FIRST_CANDIDATES, size):
        descending, order = probabilities_V.topk(min(candidates, size))
        before = descending.cumsum(-1, dtype=torch.float64) - descending
        inside = before < top_p
        if not inside[-1] or len(order) == size:
            break
    return torch.full_like(logits_V, -torch.inf).index_copy(0, order[inside], logits_V[order[inside]])


def keep_min_p(logits_V: Tensor, min_p: float) -> Tensor:
    """Return the logits with all less probable than `min_p` times the likeliest at -inf.

    Min-p sampling (Nguyen et al. 2024, arXiv:2407.01082).
    """
    if min_p == 0:
        return logits_V
    probabilities_V = logits_V.softmax(-1)
    return logits_V.masked_fill(probabilities_V < min_p * probabilities_V.max(), -torch.inf)


def log_probabilities(logits_V: Tensor, id: int, top: int) -> LogProbs:
    """Return the log-probability of a token, and those of the `top` likeliest."""
    nats_V = logits_V.log_softmax(-1)
    values, ids = nats_V.topk(min(top, nats_V.numel()))
    return LogProbs(id, float(nats_V[id]), list(zip(ids.tolist(), values.tolist(), strict=True)))
