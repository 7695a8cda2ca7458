"""The matrices of generation, in fp32 or in eight bits, and their products with one row and with some.

Dimensions: N rows, I inputs, O outputs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INT8_LARGEST = 127
INT8_INPUTS = 32  # the kernel reads beyond inputs that are no multiple: they are filled up with zeros
INT8_ROWS = 8  # from which bf16 is faster
STREAMS = 4  # parts of a matrix that are read beside each other, twice as fast as one after the other


class Float(NamedTuple):
    """Matrices of the same input as they are in the model, and side by side."""

    parts_OI: tuple[Tensor, ...]
    weight_IO: Tensor  # a few rows are multiplied with it twice as fast as by `F.linear`

    @property
    def nbytes(self) -> int:
        return self.weight_IO.nbytes


class Int8(NamedTuple):
    """A matrix in eight bits, each output's weights with a scale of their own."""

    weight_OI: Tensor  # int8
    scale_O: Tensor  # bf16
    wide_OI: Tensor | None  # the same in bf16, where many rows are multiplied with it twice as fast

    @property
    def nbytes(self) -> int:
        return self.weight_OI.nbytes + self.scale_O.nbytes


Matrix = Float | Int8


def matrix(layers: Sequence[nn.Module], int8: bool) -> Matrix:
    """Return the weights of layers, side by side, as `multiply` takes them."""
    parts_OI = tuple(layer.weight.detach() for layer in layers if isinstance(layer, nn.Linear))
    weight_OI = torch.cat(parts_OI)
    if not int8:
        return Float(parts_OI, weight_OI.T.contiguous())
    scale_O = (weight_OI.abs().amax(1) / INT8_LARGEST).clamp(min=torch.finfo(torch.float32).tiny).bfloat16()
    rounded_OI = (weight_OI / scale_O.float()[:, None]).round().clamp(-INT8_LARGEST, INT8_LARGEST)
    filled_OI = F.pad(rounded_OI.to(torch.int8), (0, -rounded_OI.shape[1] % INT8_INPUTS)).contiguous()
    has_bf16 = filled_OI.device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return Int8(filled_OI, scale_O, filled_OI.bfloat16() if has_bf16 else None)


def multiply(x_NI: Tensor, by: Matrix) -> Tensor:
    """Return the outputs [N, O] of a matrix. In eight bits, the inputs are in bf16."""
    if isinstance(by, Float):
        return x_NI @ by.weight_IO
    x_NI = F.pad(x_NI.bfloat16(), (0, by.weight_OI.shape[1] - x_NI.shape[1])).contiguous()
    if by.wide_OI is not None and len(x_NI) >= INT8_ROWS:
        return F.linear(x_NI, by.wide_OI).float() * by.scale_O
    return torch.ops.aten._weight_int8pack_mm(x_NI, by.weight_OI, by.scale_O).float()


def multiply_alone(x_1I: Tensor, by: Matrix) -> Tensor:
    """Return the outputs [1, O] of a matrix, in sums that a compiler makes a loop of."""
    parts_OI = by.parts_OI if isinstance(by, Float) else (by.weight_OI[:, : x_1I.shape[1]].float(),)
    streams = [stream for part_OI in parts_OI for stream in part_OI.split(max(1, len(part_OI) // STREAMS))]
    out_O = torch.cat([(stream * x_1I).sum(1) for stream in streams])
    return (out_O if isinstance(by, Float) else out_O * by.scale_O.float())[None]
