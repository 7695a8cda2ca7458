"""What to say when a device has too little memory: which settings to lower, and by how much."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from textgen.config import Config
from textgen.errors import OutOfMemory

ALLOCATION_ERRORS = ("allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")  # of the CPU, of cuBLAS


@contextmanager
def advice_on_memory(config: Config, device: torch.device, validating: bool) -> Iterator[None]:
    """Turn an allocation that fails in the block into advice.

    Raises:
        OutOfMemory: with that advice.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError, and so is the CPU's
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not any(text in str(error) for text in ALLOCATION_ERRORS):
            raise
        work = "a validation" if validating else "a training step"
        advice = _smaller_validation(config) if validating else _smaller_step(config)
        raise OutOfMemory(f"out of memory in {work} on {device}: {advice}") from error


def _smaller_step(config: Config) -> str:
    """Return the settings with which the same optimizer steps take about half the memory."""
    size, micro_steps = config.training.batch_size, config.training.gradient_accumulation_steps
    processes = int(os.environ.get("WORLD_SIZE", 1))  # that share a batch: each needs a sequence of it
    divisors = [divisor for divisor in range(2, size // processes + 1) if size % divisor == 0]
    if not divisors:
        return _smaller_sequences(config)
    divisor = divisors[0]
    return (
        f"set training.batch_size={size // divisor} in place of {size} and "
        f"training.gradient_accumulation_steps={micro_steps * divisor} in place of {micro_steps}: "
        f"the same steps in about 1/{divisor} of the memory"
    )


def _smaller_validation(config: Config) -> str:
    size = config.evaluation.batch_size
    if size == 1:
        return _smaller_sequences(config)
    return f"set evaluation.batch_size={size // 2} in place of {size}: the same result in about half the memory"


def _smaller_sequences(config: Config) -> str:
    length = config.data.seq_length
    return f"set data.seq_length={max(1, length // 2)} in place of {length}, or choose a smaller model"
