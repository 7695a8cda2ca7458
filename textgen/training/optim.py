"""The optimizers: which parameters each moves, and the learning rate and the weight decay at each step."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from textgen.sections import TrainingConfig


def build_optimizers(model: nn.Module, training: TrainingConfig) -> list[Optimizer]:
    """Return the optimizers that together move every parameter of the model, with weight decay on matrices only.

    `adamw`: fused AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) on all of them. `muon`: Muon (Jordan et al. 2024)
    on the matrices of the blocks, scaled to AdamW's step size so that both share a learning rate (Liu et al. 2025,
    arXiv:2502.16982), and AdamW on the rest.
    """
    named = list(model.named_parameters())  # a tied head is listed once
    matrices = [p for name, p in named if p.dim() >= 2 and ".layers." in name] if training.optimizer == "muon" else []
    rest = [p for _, p in named if all(p is not matrix for matrix in matrices)]
    adamw = AdamW(
        [
            {"params": [p for p in rest if p.dim() >= 2], "weight_decay": training.weight_decay},
            {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        fused=True,
    )
    if not matrices:
        return [adamw]
    in_bf16 = matrices[0].device.type == "cuda" or training.precision == "bf16"
    muon = BatchedMuon(
        matrices,
        torch.bfloat16 if in_bf16 else torch.float32,
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
        momentum=training.muon_momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, adamw]


def set_schedule(optimizers: Iterable[Optimizer], step: int, total_steps: int, training: TrainingConfig) -> float:
    """Give every group the learning rate and the weight decay of `step`; return the learning rate."""
    learning_rate, weight_decay = lr_at(step, total_steps, training), weight_decay_at(step, total_steps, training)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
            if group["params"][0].dim() >= 2:
                group["weight_decay"] = weight_decay
    return learning_rate


def lr_at(step: int, total_steps: int, training: TrainingConfig) -> float:
    """Return the learning rate of step `step` of `total_steps`, counted from 0: a linear warm-up, then the schedule.

    `cosine` (Loshchilov & Hutter 2017, arXiv:1608.03983) falls from the end of the warm-up; `wsd`, warmup-stable-decay
    (Hu et al. 2024, arXiv:2404.06395), falls on a line over the last `decay_fraction` of the steps. Both start at
    `learning_rate` and would reach `min_learning_rate` at `total_steps`.
    """
    warmup_steps = training.pace(total_steps).warmup_steps
    if step < warmup_steps:
        return training.learning_rate * (step + 1) / warmup_steps
    if training.schedule == "cosine":
        height = _cosine((step - warmup_steps) / max(1, total_steps - warmup_steps))
    else:
        height = min(1.0, (total_steps - step) / max(1, _decay_steps(total_steps, training)))
    return training.min_learning_rate + height * (training.learning_rate - training.min_learning_rate)


def decay_start(total_steps: int, training: TrainingConfig) -> int:
    """Return how many of `total_steps` steps a wsd schedule takes before its decay, rounded down.

    Up to there, every longer training with the same warm-up has the same learning rates.
    """
    return int(total_steps - _decay_steps(total_steps, training))


def _decay_steps(total_steps: int, training: TrainingConfig) -> float:
    return min(training.decay_fraction * total_steps, total_steps - training.pace(total_steps).warmup_steps)


def weight_decay_at(step: int, total_steps: int, training: TrainingConfig) -> float:
    """Return the weight decay of step `step`: a cosine to `final_weight_decay`, or a constant where that is null."""
    if training.final_weight_decay is None:
        return training.weight_decay
    height = _cosine(step / total_steps)
    return training.final_weight_decay + height * (training.weight_decay - training.final_weight_decay)


def _cosine(progress: float) -> float:
    """Return the height of half a cosine that falls from 1 to 0 as `progress` goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def take_step(optimizers: Iterable[Optimizer], is_bad: Tensor) -> None:
    """Move the parameters, unless `is_bad` (a scalar of 0 or 1 on their device) is 1: then nothing moves."""
    for optimizer in optimizers:
        optimizer.found_inf = is_bad  # type: ignore[attr-defined]  # GradScaler's switch in the fused AdamW: no wait for the device
        optimizer.step()
    for optimizer in optimizers:
        optimizer.zero_grad()


class BatchedMuon(Muon):
    """torch's Muon, with the matrices of a shape in one product, and `found_inf` as fused AdamW has it.

    torch orthogonalizes in bf16, one matrix after the other, which on a CPU without bf16 units takes ten times as long
    as the rest of a step. This does it in `dtype`: bf16 on a GPU or where the training is in bf16, else fp32.
    """

    found_inf = torch.zeros(())

    def __init__(self, matrices: Iterable[Tensor], dtype: torch.dtype, **settings: Any) -> None:
        super().__init__(matrices, **settings)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move the matrices, unless `found_inf` is 1; there is no closure."""
        assert closure is None
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._step(parameters, group)

    def _step(self, parameters: list[Tensor], group: dict) -> None:
        is_sound = self.found_inf == 0
        grad_NRC = torch.stack([parameter.grad for parameter in parameters if parameter.grad is not None])
        for parameter in parameters:
            self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        average_NRC = torch.stack(buffers).lerp_(grad_NRC, 1 - group["momentum"])
        update_NRC = orthogonalize(
            grad_NRC.lerp_(average_NRC, group["momentum"]).to(self.dtype),
            group["ns_coefficients"], group["ns_steps"], group["eps"],
        ).float()  # fmt: skip
        learning_rate = group["lr"] * 0.2 * math.sqrt(max(parameters[0].shape))  # match_rms_adamw
        for parameter, buffer, average, update in zip(parameters, buffers, average_NRC, update_NRC, strict=True):
            moved = (parameter * (1 - group["lr"] * group["weight_decay"])).sub_(update, alpha=learning_rate)
            torch.where(is_sound, average, buffer, out=buffer)
            torch.where(is_sound, moved, parameter, out=parameter)


def orthogonalize(matrices_NRC: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Return the matrices with their singular values near 1: a quintic Newton-Schulz iteration (Jordan et al. 2024)."""
    a, b, c = coefficients
    x = matrices_NRC if (wide := matrices_NRC.shape[-2] <= matrices_NRC.shape[-1]) else matrices_NRC.mT
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT
