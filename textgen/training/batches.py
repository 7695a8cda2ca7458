"""Which sequences are trained on when: known from the seed and a counter, so that going on needs no replay."""

import hashlib

import torch
from torch import Tensor

from textgen.text.stream import block_count, take_sequences


def blocks_an_epoch(tokens: int, seq_length: int, random_offset: bool) -> int:
    """Return how many sequences an epoch takes from a stream of so many tokens."""
    room = seq_length - 1 if random_offset else 0
    return max(1, block_count(tokens - room, seq_length))


class BatchOrder:
    """The order of a training's sequences: the blocks of a stream, shuffled anew each epoch.

    With `random_offset` the blocks of each epoch are cut at another place of the stream, and there is one fewer
    where the stream has no room to move them.
    """

    def __init__(self, seed: int, stream_N: Tensor, seq_length: int, random_offset: bool) -> None:
        self.seed, self.stream_N, self.seq_length, self.random_offset = seed, stream_N, seq_length, random_offset
        self.blocks = blocks_an_epoch(len(stream_N), seq_length, random_offset)
        self.epoch, self.starts = -1, torch.empty(0, dtype=torch.long)

    def take(self, first: int, size: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets [B, T] of the samples `first`, `first + 1`, … of the whole training."""
        starts_B = torch.stack([self._start(number) for number in range(first, first + size)])
        return take_sequences(self.stream_N, self.seq_length, starts_B)

    def place(self, number: int) -> tuple[int, int]:
        """Return the epoch of a sample and where in the stream it starts."""
        return number // self.blocks, int(self._start(number))

    def _start(self, number: int) -> Tensor:
        epoch, position = divmod(number, self.blocks)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(self._epoch_seed(epoch))
            order = torch.randperm(self.blocks, generator=generator)
            last = len(self.stream_N) - 1 - self.blocks * self.seq_length  # the furthest that the blocks can move
            highest = min(last, self.seq_length - 1) if self.random_offset else 0
            offset = torch.randint(highest + 1, (), generator=generator)
            self.epoch, self.starts = epoch, order * self.seq_length + offset
        return self.starts[position]

    def _epoch_seed(self, epoch: int) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed}:{epoch}".encode()).digest()[:8], "big", signed=True)
