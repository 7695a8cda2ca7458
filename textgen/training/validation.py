"""Validation while training: the loss on the validation split, or on `eval_blocks` of its blocks, spread evenly."""

from collections.abc import Callable
from contextlib import nullcontext

import torch

from textgen.config import Config
from textgen.evaluation.protocols import blocks
from textgen.evaluation.scoring import score
from textgen.model.device import autocast
from textgen.model.transformer import LanguageModel
from textgen.text.tokens import TokensManifest, load_stream
from textgen.training.group import Group
from textgen.training.out_of_memory import advice_on_memory


class Validator:
    """Measures weights on the validation blocks, which the processes share."""

    def __init__(
        self, tokens: TokensManifest, config: Config, device: torch.device, group: Group, compiled: bool
    ) -> None:
        self.config, self.device, self.group, self.compiled = config, device, group, compiled
        self.stream_N = load_stream(tokens, "validation")
        windows = blocks(len(self.stream_N), config.data.seq_length, config.training.eval_blocks)
        self.windows = list(windows)[group.rank :: group.size]

    def loss_nats(self, model: LanguageModel, between_batches: Callable[[], None]) -> float:
        """Return the mean loss in nats a token. `between_batches` may raise.

        Raises:
            OutOfMemory: a batch does not fit.
        """
        # The compiled blocks are those of a training's batches: others would be compiled anew
        eager = torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()
        with advice_on_memory(self.config, self.device, validating=True):
            model.eval()
            with eager, autocast(self.device, self.config.training.precision):
                nats, scored = score(
                    model, self.stream_N, self.windows, self.config.evaluation.batch_size,
                    between_batches=between_batches,
                )  # fmt: skip
            sums = torch.tensor([nats, scored], dtype=torch.float64, device=self.device)
            nats, scored = self.group.sum(sums).tolist()
        return nats / scored
