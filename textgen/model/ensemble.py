"""Several models as one: the mean of their probabilities."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from textgen.errors import InputError
from textgen.model.loss import Scorer, device_of, score_batch
from textgen.model.pretrained import LoadedModel
from textgen.model.transformer import LanguageModel


class Ensemble:
    """Models of one tokenizer and one context, which score a text together."""

    def __init__(self, models: Sequence[LanguageModel | Scorer]) -> None:
        self.models, self.device = models, device_of(models[0])

    def nats(self, x_BT: Tensor, y_BT: Tensor) -> Tensor:
        """Return -ln of the mean of the models' probabilities, in nats [B, T], of each of `y_BT` given `x_BT`."""
        nats_MBT = torch.stack([score_batch(model, x_BT, y_BT) for model in self.models])
        return math.log(len(self.models)) - torch.logsumexp(-nats_MBT, 0)


def join(loaded: Sequence[LoadedModel], names: Sequence[str]) -> LoadedModel:
    """Return the first of the models, scored by all of them together; with one model, that model unchanged.

    Raises:
        InputError: two of them differ in their tokenizer or their context.
    """
    first, *others = loaded
    for other, name in zip(others, names[1:], strict=True):
        if other.tokenizer.to_str() != first.tokenizer.to_str():
            raise InputError(f"{names[0]} and {name} have different tokenizers; an ensemble needs one")
        if other.seq_length != first.seq_length:
            raise InputError(
                f"the context of {names[0]} is {first.seq_length:,} tokens, that of {name} {other.seq_length:,}; "
                "an ensemble needs one"
            )
    return replace(first, scorer=Ensemble([model.scored_by for model in loaded])) if others else first
