"""Sampling: a prompt in, its continuation out, one token at a time."""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from textgen.errors import Damaged
from textgen.model.pretrained import LoadedModel
from textgen.text.encoding import end_id


class SamplingConfig(BaseModel):
    """How the next token is drawn. Temperature 0 takes the likeliest; top_k 0, top_p 1 and min_p 0 keep every token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int = Field(100, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_k: int = Field(0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    min_p: float = Field(0.0, ge=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)


def generate(loaded: LoadedModel, prompt: str, sampling: SamplingConfig) -> str:
    """Return the continuation of `prompt`, without the prompt; it ends at the end-of-text token or at `max_tokens`.

    An empty prompt starts after an end of text.

    Raises:
        Damaged: the model gives numbers that are not finite.
    """
    prompt_ids = encode_prompt(loaded, prompt)
    return decode_continuation(loaded, prompt_ids, generate_ids(loaded, prompt_ids, sampling))


def encode_prompt(loaded: LoadedModel, prompt: str) -> list[int]:
    """Return the ids of a prompt, those of an empty one being an end of text."""
    return loaded.tokenizer.encode(prompt, add_special_tokens=False).ids or [end_id(loaded.tokenizer)]


@torch.no_grad()
def generate_ids(loaded: LoadedModel, prompt_ids: list[int], sampling: SamplingConfig) -> list[int]:
    """Return the ids that continue a prompt; the model sees the last `seq_length` of all."""
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    end = end_id(loaded.tokenizer)
    ids, device = list(prompt_ids), next(loaded.model.parameters()).device
    for _ in range(sampling.max_tokens):
        context_1T = torch.tensor([ids[-loaded.seq_length :]], device=device)
        logits_V = loaded.model(context_1T)[0, -1].float().cpu()
        if not logits_V.isfinite().all():
            raise Damaged("the model is damaged: its logits are not finite")
        next_id = sample(logits_V, sampling, generator)
        if next_id == end:
            break
        ids.append(next_id)
    return ids[len(prompt_ids) :]


def decode_continuation(loaded: LoadedModel, prompt_ids: list[int], ids: list[int]) -> str:
    """Return the text of what follows a prompt.

    The whole is decoded and cut: the first new token may end a character that the prompt began.
    """
    start = loaded.tokenizer.decode(prompt_ids, skip_special_tokens=False)
    whole = loaded.tokenizer.decode([*prompt_ids, *ids], skip_special_tokens=False)
    return whole[len(start) :] if whole.startswith(start) else loaded.tokenizer.decode(ids)


def sample(logits_V: Tensor, sampling: SamplingConfig, generator: torch.Generator) -> int:
    """Draw one token id from logits [V]."""
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    scaled_V = logits_V / sampling.temperature
    if not scaled_V.isfinite().all():  # a temperature that is nearly 0
        return int(logits_V.argmax())
    logits_V = keep_top_k(scaled_V, sampling.top_k)
    logits_V = keep_min_p(keep_top_p(logits_V, sampling.top_p), sampling.min_p)
    return int(torch.multinomial(logits_V.softmax(-1), 1, generator=generator))


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
    ascending, order = logits_V.sort()
    outside = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    outside[-1] = False  # the likeliest stays
    return logits_V.masked_fill(torch.zeros_like(outside).scatter(0, order, outside), -torch.inf)


def keep_min_p(logits_V: Tensor, min_p: float) -> Tensor:
    """Return the logits with all less probable than `min_p` times the likeliest at -inf.

    Min-p sampling (Nguyen et al. 2024, arXiv:2407.01082).
    """
    if min_p == 0:
        return logits_V
    probabilities_V = logits_V.softmax(-1)
    return logits_V.masked_fill(probabilities_V < min_p * probabilities_V.max(), -torch.inf)
