"""A model that goes on from where it was: the keys and values of what it has read are kept, for several texts at once.

Dimensions as in `transformer`, and N tokens of any texts, S rows of the cache, L places in each, I inputs and O outputs
of a matrix.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textgen.model.ops import normalize
from textgen.model.transformer import Block, LanguageModel, rotary_tables, rotate
from textgen.terminal import one_line

log = logging.getLogger(__name__)

TIMED_STEPS = 30
SCORED_AT_ONCE = 128  # places of a text
INT8_LARGEST = 127
INT8_INPUTS = 32  # the kernel reads beyond inputs that are no multiple: they are filled up with zeros


class Int8(NamedTuple):
    """A matrix in eight bits, each output's weights with a scale of their own."""

    weight_OI: Tensor  # int8
    scale_O: Tensor  # bf16


Matrix = Tensor | Int8  # a tensor is [I, O]: a few rows are multiplied with it twice as fast as by `F.linear`


def matrix(layers: Sequence[nn.Module], int8: bool) -> Matrix:
    """Return the weights of layers, side by side, as `multiply` takes them."""
    weight_OI = torch.cat([layer.weight.detach() for layer in layers if isinstance(layer, nn.Linear)])
    if not int8:
        return weight_OI.T.contiguous()
    scale_O = (weight_OI.abs().amax(1) / INT8_LARGEST).clamp(min=torch.finfo(torch.float32).tiny).bfloat16()
    rounded_OI = (weight_OI / scale_O.float()[:, None]).round().clamp(-INT8_LARGEST, INT8_LARGEST)
    filled_OI = F.pad(rounded_OI.to(torch.int8), (0, -rounded_OI.shape[1] % INT8_INPUTS))
    return Int8(filled_OI.contiguous(), scale_O)


def multiply(x_NI: Tensor, by: Matrix) -> Tensor:
    """Return the outputs [N, O] of a matrix. In eight bits, the inputs are in bf16."""
    if isinstance(by, Tensor):
        return x_NI @ by
    x_NI = F.pad(x_NI.bfloat16(), (0, by.weight_OI.shape[1] - x_NI.shape[1])).contiguous()
    return torch.ops.aten._weight_int8pack_mm(x_NI, by.weight_OI, by.scale_O).float()


class BlockWeights(NamedTuple):
    """The weights of a block: its matrices, those of the same input as one, and its norms."""

    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix
    before_C: Tensor
    queries_D: Tensor
    keys_D: Tensor
    after_C: Tensor


class Weights(NamedTuple):
    """What a step computes with."""

    embedding_VC: Tensor
    blocks: list[BlockWeights]
    norm_C: Tensor
    head: Matrix
    cos_L1D: Tensor
    sin_L1D: Tensor


class Shape(NamedTuple):
    """The numbers of a model that are no weights."""

    head_dim: int
    queries: int  # channels
    keys: int
    eps: float

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return normalize(x, weight, self.eps)[0]

    def project(
        self, block: BlockWeights, x_NC: Tensor, cos_N1D: Tensor, sin_N1D: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries [N, H, D], keys [N, K, D] and values [N, K, D] of tokens."""
        parts = multiply(self.norm(x_NC, block.before_C), block.qkv).split([self.queries, self.keys, self.keys], -1)
        q_NHD, k_NKD, v_NKD = (part.view(len(x_NC), -1, self.head_dim) for part in parts)
        q_NHD, k_NKD = self.norm(q_NHD, block.queries_D), self.norm(k_NKD, block.keys_D)
        return rotate(q_NHD, cos_N1D, sin_N1D), rotate(k_NKD, cos_N1D, sin_N1D), v_NKD

    def add(self, block: BlockWeights, x_NC: Tensor, attended_NC: Tensor) -> Tensor:
        """Return the residual stream after a block, from what its attention gives."""
        x_NC = x_NC + multiply(attended_NC, block.out)
        gate, up = multiply(self.norm(x_NC, block.after_C), block.gate_up).chunk(2, -1)
        return x_NC + multiply(F.silu(gate) * up, block.down)


def advance(
    shape: Shape, weights: Weights, keys: list[Tensor], values: list[Tensor], ids_B: Tensor, places_B: Tensor,
    mask_B11T: Tensor | None,
) -> Tensor:  # fmt: skip
    """Read one more token in each row of caches [B, K, T, D], and return the logits [B, V]."""
    rows_B = torch.arange(len(ids_B), device=ids_B.device)
    x_BC, grouped = weights.embedding_VC[ids_B], shape.queries != shape.keys
    cos_B1D, sin_B1D = weights.cos_L1D[places_B], weights.sin_L1D[places_B]
    for block, keys_BKTD, values_BKTD in zip(weights.blocks, keys, values, strict=True):
        q_BHD, k_BKD, v_BKD = shape.project(block, x_BC, cos_B1D, sin_B1D)
        keys_BKTD[rows_B, :, places_B], values_BKTD[rows_B, :, places_B] = k_BKD, v_BKD
        out_BH1D = F.scaled_dot_product_attention(
            q_BHD.unsqueeze(2), keys_BKTD, values_BKTD, mask_B11T, enable_gqa=grouped
        )
        x_BC = shape.add(block, x_BC, out_BH1D.flatten(1))
    return multiply(shape.norm(x_BC, weights.norm_C), weights.head).float()


class CachedModel:
    """A model and a cache of S rows, each of which holds a text of up to L tokens.

    With `deterministic` a step is of all S rows and L places whatever runs, so that every product is one of the same
    shape: what a row gives does not depend on the others.
    """

    def __init__(
        self, model: LanguageModel, length: int, rows: int, deterministic: bool = False, int8: bool = False
    ) -> None:
        config, decoder = model.config, model.model
        self.length, self.rows, self.deterministic = length, rows, deterministic
        self.shape = Shape(
            config.resolved_head_dim, config.num_attention_heads * config.resolved_head_dim,
            config.resolved_num_key_value_heads * config.resolved_head_dim, config.rms_norm_eps,
        )  # fmt: skip
        embedding_VC = decoder.embed_tokens.weight.detach()
        self.device, dtype = embedding_VC.device, embedding_VC.dtype
        self.weights = Weights(
            embedding_VC,
            [_block_weights(block, int8) for block in decoder.layers if isinstance(block, Block)],
            decoder.norm.weight.detach(),
            matrix([model.lm_head], int8),
            *rotary_tables(config, length, self.device, dtype),
        )
        cache = (rows, config.resolved_num_key_value_heads, length, config.resolved_head_dim)
        self.keys, self.values = (
            [torch.zeros(cache, device=self.device, dtype=dtype) for _ in self.weights.blocks] for _ in range(2)
        )
        self._advance_one: Callable[..., Tensor] | None = None  # compiled, for a text that is alone

    @property
    def weight_bytes(self) -> int:
        """The bytes of the weights that a step reads: all but the embedding, of which it reads a row."""
        tensors = [self.weights.norm_C, self.weights.head, *(one for block in self.weights.blocks for one in block)]
        flat = [part for one in tensors for part in (one if isinstance(one, Int8) else (one,))]
        return sum(part.nbytes for part in flat)

    def read(self, texts: list[list[int]], rows: list[int]) -> list[Tensor]:
        """Read whole texts into rows of the cache, whatever was there, and return the hidden states [T, C] of each."""
        if self.deterministic and len(texts) > 1:
            return [self.read([text], [row])[0] for text, row in zip(texts, rows, strict=True)]
        weights, shape, lengths = self.weights, self.shape, [len(text) for text in texts]
        places = torch.cat([torch.arange(size) for size in lengths]).to(self.device)
        x_NC = weights.embedding_VC[torch.tensor([id for text in texts for id in text], device=self.device)]
        cos_N1D, sin_N1D = weights.cos_L1D[places], weights.sin_L1D[places]
        for block, keys_SKLD, values_SKLD in zip(weights.blocks, self.keys, self.values, strict=True):
            parts = [part.split(lengths) for part in shape.project(block, x_NC, cos_N1D, sin_N1D)]
            attended = []
            for row, q_THD, k_TKD, v_TKD in zip(rows, *parts, strict=True):
                q_HTD, k_KTD, v_KTD = (part.transpose(0, 1) for part in (q_THD, k_TKD, v_TKD))
                keys_SKLD[row, :, : len(q_THD)], values_SKLD[row, :, : len(q_THD)] = k_KTD, v_KTD
                out_HTD = F.scaled_dot_product_attention(
                    q_HTD[None], k_KTD[None], v_KTD[None], is_causal=True, enable_gqa=shape.queries != shape.keys
                )[0]
                attended.append(out_HTD.transpose(0, 1).flatten(1))
            x_NC = shape.add(block, x_NC, torch.cat(attended))
        return list(shape.norm(x_NC, weights.norm_C).split(lengths))

    def step(self, ids: Sequence[int], places: Sequence[int]) -> Tensor:
        """Read one more token in each of the first B rows, at its place, and return the logits [B, V], in fp32."""
        size, longest = len(ids), max(places) + 1
        if self.deterministic:
            ids, places, longest = (*ids, *[0] * (self.rows - size)), (*places, *[0] * (self.rows - size)), self.length
        run = advance
        if size == 1 and self._advance_one is not None:
            run, longest = self._advance_one, self.length  # of one shape, whatever the text's length
        ids_B, places_B = torch.tensor(ids, device=self.device), torch.tensor(places, device=self.device)
        mask_B11T = None
        if run is not advance or min(places) + 1 < longest:
            mask_B11T = (torch.arange(longest, device=self.device) <= places_B[:, None])[:, None, None]
        keys, values = ([cache[: len(ids), :, :longest] for cache in caches] for caches in (self.keys, self.values))
        return run(self.shape, self.weights, keys, values, ids_B, places_B, mask_B11T)[:size]

    def logits(self, hidden_NC: Tensor) -> Tensor:
        """Return the logits [N, V], in fp32, of the token after each hidden state."""
        return multiply(hidden_NC, self.weights.head).float()

    @torch.inference_mode()
    def nats(self, x_BT: Tensor, y_BT: Tensor) -> Tensor:
        """Return the cross-entropy in nats [B, T] of each of the targets `y_BT` given `x_BT`; B is at most S."""
        hidden = self.read(x_BT.tolist(), list(range(len(x_BT))))
        rows = [
            F.cross_entropy(self.logits(some_NC), targets_N, reduction="none")
            for hidden_TC, targets_T in zip(hidden, y_BT, strict=True)
            for some_NC, targets_N in zip(hidden_TC.split(SCORED_AT_ONCE), targets_T.split(SCORED_AT_ONCE), strict=True)
        ]
        return torch.cat(rows).view_as(y_BT)

    def last_logits(self, hidden: Sequence[Tensor]) -> Tensor:
        """Return the logits [B, V] of the token after each of B texts, from their hidden states [T, C]."""
        if self.deterministic:
            return torch.cat([self.logits(hidden_TC[-1:]) for hidden_TC in hidden])
        return self.logits(torch.stack([hidden_TC[-1] for hidden_TC in hidden]))

    @torch.inference_mode()
    def compile(self) -> bool:
        """Compile the step of a text that is alone, and return whether that makes it faster; if not, it stays as it is.

        To be called before a text is read. It takes ten seconds, and one where the compiler's cache has it.
        """
        if self.deterministic:
            return False
        before = self._step_seconds()
        self._advance_one = torch.compile(advance, dynamic=False, fullgraph=True)
        try:
            if self._step_seconds() < before:
                return True
        except Exception as error:  # of the compiler, or of a machine that has none
            log.info("a step is not compiled: %s", one_line(error))
        self._advance_one = None
        return False

    def _step_seconds(self) -> float:
        """Return what a step of one text takes, the shortest of some."""
        seconds = []
        for _ in range(TIMED_STEPS):
            started = time.perf_counter()
            self.step([0], [0])
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` places of a row of the cache to another row."""
        for cache_SKLD in (*self.keys, *self.values):
            cache_SKLD[target, :, :length] = cache_SKLD[source, :, :length]


def _block_weights(block: Block, int8: bool) -> BlockWeights:
    attention, mlp = block.self_attn, block.mlp
    return BlockWeights(
        matrix([attention.q_proj, attention.k_proj, attention.v_proj], int8),
        matrix([attention.o_proj], int8),
        matrix([mlp.gate_proj, mlp.up_proj], int8),
        matrix([mlp.down_proj], int8),
        *(
            norm.weight.detach()
            for norm in (block.input_layernorm, attention.q_norm, attention.k_norm, block.post_attention_layernorm)
        ),
    )
