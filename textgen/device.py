"""Where the tensors are and in what precision: the device, its autocast, and the seeds of every random generator."""

import random
from contextlib import AbstractContextManager, nullcontext

import numpy
import torch

from textgen.files import InputError


def choose_device(name: str) -> torch.device:
    """Return the device that `training.device` asks for; `auto` is the GPU where there is one.

    Raises:
        InputError: cuda is asked for and absent.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("training.device='cuda': this machine has no CUDA GPU")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Return the context in which matrices multiply in bf16, if `training.precision` and the device say so."""
    wants_bf16 = precision == "bf16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, dtype=torch.bfloat16) if wants_bf16 else nullcontext()


def seed_everything(seed: int) -> None:
    """Seed python, numpy, torch and CUDA."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)  # CUDA's generators too
