"""The optimizer: which parameters decay, AdamW over them, and the learning rate at each step."""

import math

import torch
from torch import nn

from textgen.config import TrainingConfig


def build_optimizer(model: nn.Module, training: TrainingConfig) -> torch.optim.AdamW:
    """Return fused AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with weight decay on matrices only."""
    parameters = list(model.parameters())  # a tied head is listed once
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        fused=True,
    )


def lr_at(step: int, total_steps: int, training: TrainingConfig) -> float:
    """Return the learning rate of step `step` of `total_steps`, counted from 0: a linear warm-up, then a cosine.

    The cosine (Loshchilov & Hutter 2017, arXiv:1608.03983) starts at `learning_rate` after the warm-up and would reach
    `min_learning_rate` at `total_steps`.
    """
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / max(1, total_steps - training.warmup_steps)
    height = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return training.min_learning_rate + height * (training.learning_rate - training.min_learning_rate)
