"""The model with a KV cache: `read` is the prefill of a text, `step` decodes one token of each of several texts.

Dimensions as in `transformer`, and N tokens of any texts, S rows of the cache, L places in each.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen.model.matrix import Matrix, matrix, multiply, multiply_alone
from textgen.model.ops import normalize
from textgen.model.transformer import Block, LanguageModel, rotary_tables, rotate
from textgen.terminal import one_line

log = logging.getLogger(__name__)

TIMED_STEPS = 30
SCORED_AT_ONCE = 128  # places of a text
COMPILER: dict[str, Any] = {
    "fullgraph": True,
    "dynamic": False,
    "isolate_recompiles": True,  # a model's tensors keep their shapes: with a compilation of its own, none is checked
    "options": {
        "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
        "realize_reads_threshold": 1,  # a norm is computed once, and not again for each output of a matrix
        "cpp.enable_floating_point_contract_flag": "fast",  # multiply and add in one instruction
    },
}


def attend_alone(q_1HD: Tensor, keys_1KTD: Tensor, values_1KTD: Tensor) -> Tensor:
    """Return the attention [1, H * D] of a text's last place to all of its places, as a compiler makes loops of it."""
    _, K, _, D = keys_1KTD.shape
    scores_KGT = (q_1HD.view(K, -1, 1, D) * keys_1KTD[0, :, None]).sum(-1) * D**-0.5
    return (scores_KGT.softmax(-1).unsqueeze(-1) * values_1KTD[0, :, None]).sum(2).view(1, -1)


class BlockWeights(NamedTuple):
    """The weights of a block: its matrices, those of the same input as one, and its norms."""

    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix
    before_C: Tensor
    qk_HD: Tensor  # of the heads of queries, and then of those of keys
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
    """The numbers of a model that are no weights, and whether its step is that of one text, to be compiled."""

    head_dim: int
    heads: int
    key_heads: int
    eps: float
    alone: bool = False

    def multiply(self, x_NI: Tensor, by: Matrix) -> Tensor:
        return multiply_alone(x_NI, by) if self.alone else multiply(x_NI, by)

    def attend(self, q_BHD: Tensor, keys_BKTD: Tensor, values_BKTD: Tensor, mask_B11T: Tensor | None) -> Tensor:
        """Return the attention [B, H * D] of each text's last place."""
        if self.alone:
            return attend_alone(q_BHD, keys_BKTD, values_BKTD)
        return F.scaled_dot_product_attention(
            q_BHD.unsqueeze(2), keys_BKTD, values_BKTD, mask_B11T, enable_gqa=self.heads != self.key_heads
        ).flatten(1)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return normalize(x, weight, self.eps)[0]

    def project(
        self, block: BlockWeights, x_NC: Tensor, cos_N1D: Tensor, sin_N1D: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries [N, H, D], keys [N, K, D] and values [N, K, D] of tokens."""
        qkv_NC = self.multiply(self.norm(x_NC, block.before_C), block.qkv)
        qkv_NHD = qkv_NC.view(len(x_NC), -1, self.head_dim)
        qk_NHD = rotate(self.norm(qkv_NHD[:, : self.heads + self.key_heads], block.qk_HD), cos_N1D, sin_N1D)
        return qk_NHD[:, : self.heads], qk_NHD[:, self.heads :], qkv_NHD[:, self.heads + self.key_heads :]

    def add(self, block: BlockWeights, x_NC: Tensor, attended_NC: Tensor) -> Tensor:
        """Return the residual stream after a block, from what its attention gives."""
        x_NC = x_NC + self.multiply(attended_NC, block.out)
        gate, up = self.multiply(self.norm(x_NC, block.after_C), block.gate_up).chunk(2, -1)
        return x_NC + self.multiply(F.silu(gate) * up, block.down)


class Where(NamedTuple):
    """Where the tokens of a step are in the caches, and what each sees."""

    rows_B: Tensor
    places_B: Tensor
    cos_B1D: Tensor
    sin_B1D: Tensor
    seen_T: Tensor  # the places up to that of the longest text
    mask_B11T: Tensor | None  # of the places of each text, where one is shorter


@torch.compiler.nested_compile_region  # once for all blocks
def advance_block(
    shape: Shape, block: BlockWeights, keys_SKLD: Tensor, values_SKLD: Tensor, x_BC: Tensor, where: Where
) -> Tensor:
    """Return the residual stream of one more token in each of the first B rows of the caches, after a block."""
    q_BHD, k_BKD, v_BKD = shape.project(block, x_BC, where.cos_B1D, where.sin_B1D)
    keys_SKLD[where.rows_B, :, where.places_B], values_SKLD[where.rows_B, :, where.places_B] = k_BKD, v_BKD
    keys_BKTD, values_BKTD = (cache[: len(x_BC), :, : where.seen_T.shape[0]] for cache in (keys_SKLD, values_SKLD))
    return shape.add(block, x_BC, shape.attend(q_BHD, keys_BKTD, values_BKTD, where.mask_B11T))


def advance(
    shape: Shape, weights: Weights, caches: tuple[list[Tensor], list[Tensor]], ids_B: Tensor, places_B: Tensor,
    seen_T: Tensor, masked: bool,
) -> Tensor:  # fmt: skip
    """Read one more token in each of the first B rows of the caches, and return the logits [B, V].

    `seen_T` are the places up to that of the longest text, and `masked` is whether another one is shorter.
    """
    mask_B11T = (seen_T <= places_B[:, None])[:, None, None] if masked else None
    rows_B = torch.arange(len(ids_B), device=ids_B.device)
    where = Where(rows_B, places_B, weights.cos_L1D[places_B], weights.sin_L1D[places_B], seen_T, mask_B11T)
    x_BC = weights.embedding_VC[ids_B]
    for block, keys_SKLD, values_SKLD in zip(weights.blocks, *caches, strict=True):
        x_BC = advance_block(shape, block, keys_SKLD, values_SKLD, x_BC, where)
    return shape.multiply(shape.norm(x_BC, weights.norm_C), weights.head).float()


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
            config.resolved_head_dim, config.num_attention_heads, config.resolved_num_key_value_heads,
            config.rms_norm_eps,
        )  # fmt: skip
        embedding_VC = decoder.embed_tokens.weight.detach()
        self.device, dtype = embedding_VC.device, embedding_VC.dtype
        self.weights = Weights(
            embedding_VC,
            [_block_weights(block, self.shape, int8) for block in decoder.layers if isinstance(block, Block)],
            decoder.norm.weight.detach(),
            matrix([model.lm_head], int8),
            *rotary_tables(config, length, self.device, dtype),
        )
        self.places_L = torch.arange(length, device=self.device)
        # One place more than texts have: compiled for a part of the cache, a step cannot take the whole.
        cache = (rows, config.resolved_num_key_value_heads, length + 1, config.resolved_head_dim)
        self.keys, self.values = (
            [torch.zeros(cache, device=self.device, dtype=dtype) for _ in self.weights.blocks] for _ in range(2)
        )
        self._advance_alone: Callable[..., Tensor] | None = None  # compiled, for a text that is alone

    @property
    def weight_bytes(self) -> int:
        """The bytes of the weights that a step reads: all but the embedding, of which it reads a row."""
        tensors = [self.weights.norm_C, self.weights.head, *(one for block in self.weights.blocks for one in block)]
        return sum(one.nbytes for one in tensors)

    def read(self, texts: list[list[int]], rows: list[int]) -> list[Tensor]:
        """Read whole texts into rows of the cache, whatever was there, and return the hidden states [T, C] of each."""
        if self.deterministic and len(texts) > 1:
            return [self.read([text], [row])[0] for text, row in zip(texts, rows, strict=True)]
        weights, shape, lengths = self.weights, self.shape, [len(text) for text in texts]
        places = torch.cat([self.places_L[:size] for size in lengths])
        x_NC = weights.embedding_VC[torch.tensor([id for text in texts for id in text], device=self.device)]
        cos_N1D, sin_N1D = weights.cos_L1D[places], weights.sin_L1D[places]
        for block, keys_SKLD, values_SKLD in zip(weights.blocks, self.keys, self.values, strict=True):
            parts = [part.split(lengths) for part in shape.project(block, x_NC, cos_N1D, sin_N1D)]
            attended = []
            for row, q_THD, k_TKD, v_TKD in zip(rows, *parts, strict=True):
                q_HTD, k_KTD, v_KTD = (part.transpose(0, 1) for part in (q_THD, k_TKD, v_TKD))
                keys_SKLD[row, :, : len(q_THD)], values_SKLD[row, :, : len(q_THD)] = k_KTD, v_KTD
                out_HTD = F.scaled_dot_product_attention(
                    q_HTD[None], k_KTD[None], v_KTD[None], is_causal=True, enable_gqa=shape.heads != shape.key_heads
                )[0]
                attended.append(out_HTD.transpose(0, 1).flatten(1))
            x_NC = shape.add(block, x_NC, torch.cat(attended))
        return list(shape.norm(x_NC, weights.norm_C).split(lengths))

    def step(self, ids: Sequence[int], places: Sequence[int]) -> Tensor:
        """Read one more token in each of the first B rows, at its place, and return the logits [B, V], in fp32."""
        size, longest = len(ids), max(places) + 1
        if self.deterministic:
            ids, places, longest = (*ids, *[0] * (self.rows - size)), (*places, *[0] * (self.rows - size)), self.length
        run, shape, seen_T = advance, self.shape, self.places_L[:longest]
        if size == 1 and longest > 1 and self._advance_alone is not None:
            run, shape = self._advance_alone, self.shape._replace(alone=True)
            torch._dynamo.mark_dynamic(seen_T, 0)  # one compilation for texts of any length, but of a single token
        ids_B, places_B = torch.tensor(ids, device=self.device), torch.tensor(places, device=self.device)
        masked = min(places) + 1 < longest
        return run(shape, self.weights, (self.keys, self.values), ids_B, places_B, seen_T, masked)[:size]

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

        To be called before a text is read. It takes ten seconds, and two where the compiler's cache has it.
        """
        if self.deterministic:
            return False
        before = self._step_seconds()
        self._advance_alone = torch.compile(advance, **COMPILER)
        try:
            if self._step_seconds() < before:
                return True
        except Exception as error:  # of the compiler, or of a machine that has none
            log.info("a step is not compiled: %s", one_line(error))
        self._advance_alone = None
        return False

    def _step_seconds(self) -> float:
        """Return what a step of one text takes, the shortest of some."""
        seconds = []
        for _ in range(TIMED_STEPS):
            started = time.perf_counter()
            self.step([0], [self.length // 2])
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` places of a row of the cache to another row."""
        for cache_SKLD in (*self.keys, *self.values):
            cache_SKLD[target, :, :length] = cache_SKLD[source, :, :length]


def _block_weights(block: Block, shape: Shape, int8: bool) -> BlockWeights:
    attention, mlp = block.self_attn, block.mlp
    of_heads = ((attention.q_norm, shape.heads), (attention.k_norm, shape.key_heads))
    return BlockWeights(
        matrix([attention.q_proj, attention.k_proj, attention.v_proj], int8),
        matrix([attention.o_proj], int8),
        matrix([mlp.gate_proj, mlp.up_proj], int8),
        matrix([mlp.down_proj], int8),
        block.input_layernorm.weight.detach(),
        torch.cat([norm.weight.detach().expand(heads, -1) for norm, heads in of_heads]),
        block.post_attention_layernorm.weight.detach(),
    )
