"""The next-token loss, without the logits [B, T, V] of a large vocabulary: they are made and used in chunks of rows.

Dimensions: N rows (batch times time), C channels, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from textgen.model.transformer import LanguageModel

LOGITS_IN_MEMORY = {"cpu": 9 * 2**22, "cuda": 2**27}  # entries of a chunk: large enough to keep the device busy
ROWS_IN_BF16 = 512  # of a chunk on a CPU, whose caches hold it: about the fastest at vocabularies of 1,024 to 50,257
SAFE_LOGIT = 60.0  # e^60, and e^-60, summed over any vocabulary and divided by such a sum, are far from fp32's limits
ROWS_ALIGNED = 32  # a chunk has a multiple of so many rows, or matrix products are slower by up to a third


class Scorer(Protocol):
    """What scores a text instead of a `LanguageModel`: the model in eight bits, or several together."""

    device: torch.device

    def nats(self, x_BT: Tensor, y_BT: Tensor) -> Tensor:
        """Return the cross-entropy in nats [B, T] of each of the targets `y_BT` given `x_BT`."""


def score_batch(model: LanguageModel | Scorer, x_BT: Tensor, y_BT: Tensor) -> Tensor:
    """Return the cross-entropy in nats [B, T] of each of the targets `y_BT` given `x_BT`."""
    return next_token_nats(model, x_BT, y_BT) if isinstance(model, LanguageModel) else model.nats(x_BT, y_BT)


def device_of(model: LanguageModel | Scorer) -> torch.device:
    """Return the device of what scores."""
    return next(model.parameters()).device if isinstance(model, LanguageModel) else model.device


class NextTokenLoss(nn.Module):
    """A model and its loss as one module, as DistributedDataParallel needs it. It has no parameters of its own."""

    def __init__(self, model: LanguageModel, compile_blocks: bool) -> None:
        super().__init__()
        self.model = model
        if compile_blocks:  # one compilation serves all blocks; of four that takes half the time
            for block in model.model.layers:
                block.compile()

    def forward(self, x_BT: Tensor, y_BT: Tensor) -> Tensor:
        """Return the sum over all tokens of the cross-entropy in nats of `y_BT` given `x_BT`, differentiable once."""
        hidden_NC = self.model.output_dropout(self.model.model(x_BT)).flatten(0, 1)
        return cross_entropy_sum(hidden_NC, self.model.lm_head.weight, y_BT.flatten())


@torch.no_grad()
def next_token_nats(model: LanguageModel, x_BT: Tensor, y_BT: Tensor) -> Tensor:
    """Return the cross-entropy in nats [B, T] of each of the targets `y_BT` given `x_BT`."""
    dtype = _product_dtype(model.lm_head.weight)
    hidden_NC, weight_VC = model.model(x_BT).flatten(0, 1).to(dtype), model.lm_head.weight.to(dtype)
    y_N1 = y_BT.reshape(-1, 1)
    chunks = list(_chunks(hidden_NC, len(weight_VC)))
    memory, nats = hidden_NC.new_empty(chunks[0].stop * len(weight_VC)), []
    are_small = _are_small(hidden_NC, weight_VC)
    with torch.autocast(hidden_NC.device.type, enabled=False):
        for rows in chunks:
            y_n1 = y_N1[rows]
            logits_nV = _logits(hidden_NC[rows], weight_VC, memory)
            if dtype == torch.float32:
                target_n1 = logits_nV.gather(1, y_n1)
                highest_n1, sums_n1 = _exponentiate(logits_nV, are_small)
                nats.append(sums_n1.log_().add_(highest_n1).sub_(target_n1))
            else:
                nats.append(F.cross_entropy(logits_nV.float(), y_n1[:, 0], reduction="none")[:, None])
    return torch.cat(nats).view_as(y_BT)


def cross_entropy_sum(hidden_NC: Tensor, weight_VC: Tensor, y_N: Tensor) -> Tensor:
    """Return the summed cross-entropy in nats of `y_N` under the logits `hidden_NC @ weight_VC.T`.

    Matrices multiply in autocast's type where it is on; a target less likely than e^-87 then counts as 87 nats.
    """
    return _CrossEntropySum.apply(hidden_NC, weight_VC, y_N, _product_dtype(weight_VC))


class _CrossEntropySum(torch.autograd.Function):
    """The loss and, in the same pass, its gradients: the logits need not be kept, nor made again.

    The idea is Liger Kernel's (Hsu et al. 2024, arXiv:2410.10989). torch 2.13's `linear_cross_entropy` does the same;
    this one is faster on a CPU, where the softmax overwrites the logits, and runs on older versions of torch.

    d loss / d logits = softmax - onehot. In fp32, exp(logits) - sum * onehot is made in place, and it is the products
    with it, [n, C], that are divided by the sums: they are narrower than [n, V].
    """

    @staticmethod
    def forward(ctx: Any, hidden_NC: Tensor, weight_VC: Tensor, y_N: Tensor, dtype: torch.dtype) -> Tensor:
        hidden, weight = hidden_NC.to(dtype), weight_VC.to(dtype)
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.empty_like(weight_VC)
        nats = torch.zeros((), dtype=torch.float32, device=hidden.device)
        chunks = list(_chunks(hidden, len(weight)))
        memory = hidden.new_empty(chunks[0].stop * len(weight))
        are_small = _are_small(hidden, weight)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in chunks:
                hidden_nC, y_n1 = hidden[rows], y_N[rows, None]
                logits_nV = _logits(hidden_nC, weight, memory)
                if dtype == torch.float32:
                    target_n1 = logits_nV.gather(1, y_n1)
                    highest_n1, sums_n1 = _exponentiate(logits_nV, are_small)
                    nats += (sums_n1.log() + highest_n1 - target_n1).sum()
                    grad_nV = logits_nV.scatter_add_(1, y_n1, -sums_n1)
                    torch.mm(grad_nV, weight, out=hidden_grad[rows]).div_(sums_n1)
                    hidden_nC = hidden_nC / sums_n1
                else:
                    probabilities_nV = torch.softmax(logits_nV, dim=1, dtype=torch.float32)
                    target_n1 = probabilities_nV.gather(1, y_n1)
                    nats -= target_n1.clamp(min=torch.finfo(torch.float32).tiny).log().sum()
                    grad_nV = probabilities_nV.scatter_(1, y_n1, target_n1 - 1).to(dtype)
                    torch.mm(grad_nV, weight, out=hidden_grad[rows])
                kept = min(rows.start, 1)  # 0 at the first chunk, which overwrites what the memory held
                if dtype == weight_grad.dtype:
                    weight_grad.addmm_(grad_nV.T, hidden_nC, beta=kept)
                elif kept:
                    weight_grad += grad_nV.T @ hidden_nC
                else:
                    weight_grad.copy_(grad_nV.T @ hidden_nC)
        ctx.gradients = hidden_grad.to(hidden_NC.dtype), weight_grad
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_grad, weight_grad = ctx.gradients
        del ctx.gradients  # scaled in place: good for one use
        return hidden_grad.mul_(grad), weight_grad.mul_(grad), None, None


def _product_dtype(weight_VC: Tensor) -> torch.dtype:
    """Return the type in which matrices multiply: autocast's where it is on."""
    device = weight_VC.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VC.dtype


def _logits(hidden_nC: Tensor, weight_VC: Tensor, memory: Tensor) -> Tensor:
    """Return a chunk's logits [n, V], which fill the memory or the first part of it."""
    n, vocab_size = len(hidden_nC), len(weight_VC)
    memory = memory[: n * vocab_size]
    if memory.device.type == "cpu" and memory.dtype == torch.float32:  # column-major: there up to twice as fast
        return torch.mm(hidden_nC, weight_VC.T, out=memory.view(vocab_size, n).T)
    return torch.mm(hidden_nC, weight_VC.T, out=memory.view(n, vocab_size))


def _are_small(hidden_NC: Tensor, weight_VC: Tensor) -> bool:
    """Return whether no logit is beyond SAFE_LOGIT, by Cauchy and Schwarz. Asked on a CPU: a GPU would have to wait."""
    if hidden_NC.device.type != "cpu" or hidden_NC.dtype != torch.float32:
        return False
    return bool(hidden_NC.norm(dim=1).amax() * weight_VC.norm(dim=1).amax() <= SAFE_LOGIT)


def _exponentiate(logits_nV: Tensor, are_small: bool) -> tuple[Tensor | float, Tensor]:
    """Overwrite logits with their exponentials; return what was taken off each row before, and the rows' sums.

    The row's highest is taken off, or of small logits nothing, which spares two passes over memory.
    """
    highest_n1 = 0.0 if are_small else logits_nV.amax(1, keepdim=True)
    if not are_small:
        logits_nV.sub_(highest_n1)
    return highest_n1, logits_nV.exp_().sum(1, keepdim=True)


def _chunks(hidden_NC: Tensor, vocab_size: int) -> Iterator[slice]:
    """Yield slices of the rows, of nearly one size.

    Their logits fit in LOGITS_IN_MEMORY, and in bf16 on a CPU they have at most ROWS_IN_BF16 rows.
    """
    rows, device = len(hidden_NC), hidden_NC.device.type
    largest = max(1, LOGITS_IN_MEMORY[device] // vocab_size)
    if device == "cpu" and hidden_NC.dtype == torch.bfloat16:
        largest = min(largest, ROWS_IN_BF16)
    unit = ROWS_ALIGNED if largest >= ROWS_ALIGNED else 1
    count = -(-rows // (largest // unit * unit))
    size = -(-rows // (count * unit)) * unit
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
