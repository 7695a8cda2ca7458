"""Operations of the Transformer whose gradients are written out, because autograd would keep more for them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return `x` over its root mean square along the last axis, times `weight`. Any shape.

    As in Qwen3, in the type that both promote to: bf16 with an fp32 weight gives fp32.
    """
    return _RMSNorm.apply(x, weight, eps)


def normalize(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return what `rms_norm` returns, without a gradient, and the scale [..., 1] that `x` was multiplied with."""
    # Written out: F.rms_norm rounds otherwise, and in bf16 the logits would leave the stock class's by 0.5.
    x_fp32 = x.float()
    scale = torch.rsqrt(x_fp32.pow(2).mean(-1, keepdim=True) + eps)
    return weight * (x_fp32 * scale).to(x.dtype), scale


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return `silu(gate) * up`."""
    return _SwiGLU.apply(gate, up)


class _RMSNorm(torch.autograd.Function):
    """The norm, and its gradient from its input alone: autograd would keep what lies between them too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, scale = normalize(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        grad, normed = grad.float(), x.float() * scale
        along = grad * normed
        weight_grad = along.flatten(0, -2).sum(0)
        x_grad = (grad * weight).addcmul_(normed, (along * weight).mean(-1, keepdim=True), value=-1).mul_(scale)
        return x_grad.to(x.dtype), weight_grad, None


class _SwiGLU(torch.autograd.Function):
    """`silu(gate) * up`, of which `silu(gate)` is not kept for the gradient but made again."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)
