"""A model that goes on from where it was: the keys and values of what it has read are kept, for several texts at once.

Dimensions as in `transformer`, and N tokens of any texts, S rows of the cache, L places in each.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen.model.ops import normalize
from textgen.model.transformer import Block, LanguageModel, rotary_tables, rotate


class Matrix:
    """A weight matrix as it is multiplied with: transposed, which a few rows read twice as fast as `F.linear` does."""

    def __init__(self, *weights: Tensor) -> None:
        self.weight_IO = torch.cat([weight.detach() for weight in weights]).T.contiguous()

    def __call__(self, x_NI: Tensor) -> Tensor:
        return x_NI @ self.weight_IO


class CachedBlock:
    """A block with its matrices side by side, so that each input is multiplied once."""

    def __init__(self, block: Block) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.head_dim, self.grouped = attention.head_dim, attention.grouped
        self.qkv = Matrix(attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
        self.sizes = [layer.out_features for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
        self.out, self.down = Matrix(attention.o_proj.weight), Matrix(mlp.down_proj.weight)
        self.gate_up = Matrix(mlp.gate_proj.weight, mlp.up_proj.weight)
        self.norms = [
            (norm.weight.detach(), norm.eps)
            for norm in (block.input_layernorm, attention.q_norm, attention.k_norm, block.post_attention_layernorm)
        ]

    def project(self, x_NC: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries [N, H, D], keys [N, K, D] and values [N, K, D] of tokens."""
        before, of_queries, of_keys, _ = self.norms
        normed_NC, _ = normalize(x_NC, *before)
        parts = self.qkv(normed_NC).split(self.sizes, -1)
        q_NHD, k_NKD, v_NKD = (part.view(len(x_NC), -1, self.head_dim) for part in parts)
        q_NHD, k_NKD = normalize(q_NHD, *of_queries)[0], normalize(k_NKD, *of_keys)[0]
        return rotate(q_NHD, cos_N1D, sin_N1D), rotate(k_NKD, cos_N1D, sin_N1D), v_NKD

    def add(self, x_NC: Tensor, attended_NC: Tensor) -> Tensor:
        """Return the residual stream after the block, from what the attention gives."""
        x_NC = x_NC + self.out(attended_NC)
        normed_NC, _ = normalize(x_NC, *self.norms[3])
        gate, up = self.gate_up(normed_NC).chunk(2, -1)
        return x_NC + self.down(F.silu(gate).mul_(up))


class CachedModel:
    """A model and a cache of S rows, each of which holds a text of up to L tokens."""

    def __init__(self, model: LanguageModel, length: int, rows: int) -> None:
        config, decoder = model.config, model.model
        self.length, self.rows = length, rows
        self.embedding_VC = decoder.embed_tokens.weight.detach()
        self.blocks = [CachedBlock(block) for block in decoder.layers if isinstance(block, Block)]
        self.norm = (decoder.norm.weight.detach(), decoder.norm.eps)
        self.head = Matrix(model.lm_head.weight)
        self.device, dtype = self.embedding_VC.device, self.embedding_VC.dtype
        self.cos_L1D, self.sin_L1D = rotary_tables(config, length, self.device, dtype)
        shape = (len(self.blocks), rows, config.resolved_num_key_value_heads, length, config.resolved_head_dim)
        self.keys, self.values = (torch.zeros(shape, device=self.device, dtype=dtype) for _ in range(2))

    def read(self, texts: list[list[int]], rows: list[int]) -> list[Tensor]:
        """Read whole texts into rows of the cache, whatever was there, and return the hidden states [T, C] of each."""
        lengths = [len(text) for text in texts]
        places = torch.cat([torch.arange(size) for size in lengths]).to(self.device)
        x_NC = self.embedding_VC[torch.tensor([id for text in texts for id in text], device=self.device)]
        cos_N1D, sin_N1D = self.cos_L1D[places], self.sin_L1D[places]
        for layer, block in enumerate(self.blocks):
            parts = [part.split(lengths) for part in block.project(x_NC, cos_N1D, sin_N1D)]
            attended = []
            for row, q_THD, k_TKD, v_TKD in zip(rows, *parts, strict=True):
                q_HTD, k_KTD, v_KTD = (part.transpose(0, 1) for part in (q_THD, k_TKD, v_TKD))
                self.keys[layer, row, :, : len(q_THD)], self.values[layer, row, :, : len(q_THD)] = k_KTD, v_KTD
                out_HTD = F.scaled_dot_product_attention(
                    q_HTD[None], k_KTD[None], v_KTD[None], is_causal=True, enable_gqa=block.grouped
                )[0]
                attended.append(out_HTD.transpose(0, 1).flatten(1))
            x_NC = block.add(x_NC, torch.cat(attended))
        return list(normalize(x_NC, *self.norm)[0].split(lengths))

    def step(self, ids: Sequence[int], places: Sequence[int]) -> Tensor:
        """Read one more token in each of the first B rows, at its place, and return the hidden states [B, C]."""
        ids_B, places_B = torch.tensor(ids, device=self.device), torch.tensor(places, device=self.device)
        rows_B = torch.arange(len(ids), device=self.device)
        longest = max(places) + 1
        mask_B11T = None
        if min(places) + 1 < longest:
            mask_B11T = (torch.arange(longest, device=self.device) <= places_B[:, None])[:, None, None]
        x_BC = self.embedding_VC[ids_B]
        cos_B1D, sin_B1D = self.cos_L1D[places_B], self.sin_L1D[places_B]
        for layer, block in enumerate(self.blocks):
            q_BHD, k_BKD, v_BKD = block.project(x_BC, cos_B1D, sin_B1D)
            keys, values = self.keys[layer], self.values[layer]
            keys[rows_B, :, places_B], values[rows_B, :, places_B] = k_BKD, v_BKD
            out_BH1D = F.scaled_dot_product_attention(
                q_BHD.unsqueeze(2), keys[: len(ids), :, :longest], values[: len(ids), :, :longest], mask_B11T,
                enable_gqa=block.grouped,
            )  # fmt: skip
            x_BC = block.add(x_BC, out_BH1D.flatten(1))
        return normalize(x_BC, *self.norm)[0]

    def logits(self, hidden_NC: Tensor) -> Tensor:
        """Return the logits [N, V], in fp32, of the token after each hidden state."""
        return self.head(hidden_NC).float()

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` places of a row of the cache to another row."""
        for cache in (self.keys, self.values):
            cache[:, target, :, :length] = cache[:, source, :, :length]
