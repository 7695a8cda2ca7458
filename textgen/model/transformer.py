"""The Transformer: attention, MLP, block, model, from PyTorch primitives in the shape and names of Qwen3.

Dimensions: B batch, T time, C channels (hidden size), H attention heads, K key-value heads, D head dim, V vocabulary.
A state dict of `LanguageModel` is one of transformers' `Qwen3ForCausalLM`, and gives the same fp32 logits bit for bit
(with SDPA and no cache: the stock cache lays keys out otherwise, which can move the last bits).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textgen.model.ops import rms_norm, swiglu
from textgen.sections import ModelConfig


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def rotary_tables(config: ModelConfig, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines [T, 1, D] of the rotary position embedding (Su et al. 2021, arXiv:2104.09864).

    The sines of the first half of a head's channels are negative, as `rotate` needs them.
    """
    head_dim = config.resolved_head_dim
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float, device=device) / head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    angles = torch.arange(length, dtype=torch.float, device=device)[:, None, None] * frequencies
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x_BTHD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    """Turn each pair (i, i + D/2) of a head's channels by its position's angle."""
    first, second = x_BTHD.chunk(2, dim=-1)
    return x_BTHD * cos_T1D + torch.cat((second, first), dim=-1) * sin_T1D


class Attention(nn.Module):
    """Causal self-attention with grouped queries, normed queries and keys, and rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C, D = config.hidden_size, config.resolved_head_dim
        H, K = config.num_attention_heads, config.resolved_num_key_value_heads
        self.head_dim, self.dropout, self.grouped = D, config.attention_dropout, H != K
        self.q_proj = nn.Linear(C, H * D, bias=False)
        self.k_proj = nn.Linear(C, K * D, bias=False)
        self.v_proj = nn.Linear(C, K * D, bias=False)
        self.o_proj = nn.Linear(H * D, C, bias=False)
        self.q_norm = RMSNorm(D, config.rms_norm_eps)
        self.k_norm = RMSNorm(D, config.rms_norm_eps)

    def forward(self, x: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        B, T, _ = x.shape
        q_BTHD = self.q_norm(self.q_proj(x).view(B, T, -1, self.head_dim))
        k_BTKD = self.k_norm(self.k_proj(x).view(B, T, -1, self.head_dim))
        v_BTKD = self.v_proj(x).view(B, T, -1, self.head_dim)
        out_BHTD = F.scaled_dot_product_attention(
            rotate(q_BTHD, cos_T1D, sin_T1D).transpose(1, 2),
            rotate(k_BTKD, cos_T1D, sin_T1D).transpose(1, 2),
            v_BTKD.transpose(1, 2),
            is_causal=True,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=self.grouped,
        )
        return self.o_proj(out_BHTD.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Block(nn.Module):
    """Attention and MLP, each normed before and added to the residual stream after."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos_T1D, sin_T1D))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class EmbeddingDropout(nn.Module):
    """Drop every occurrence of a type, a row of the embedding, in a batch (Gal & Ghahramani 2016, arXiv:1512.05287)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, ids_BT: Tensor, vocab_size: int) -> Tensor:
        if not self.training or self.p == 0:
            return x
        kept_V = torch.empty(vocab_size, device=x.device, dtype=x.dtype).bernoulli_(1 - self.p)
        return x * (kept_V / (1 - self.p))[ids_BT].unsqueeze(-1)


class Decoder(nn.Module):
    """Token ids to hidden states: the embedding, the blocks, the last norm."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.embedding_dropout = EmbeddingDropout(config.embedding_dropout)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x = self.embedding_dropout(self.embed_tokens(ids_BT), ids_BT, self.embed_tokens.num_embeddings)
        x = self.input_dropout(x)
        cos_T1D, sin_T1D = rotary_tables(self.config, ids_BT.shape[1], x.device, x.dtype)
        for layer in self.layers:
            x = layer(x, cos_T1D, sin_T1D)
        return self.norm(x)


class LanguageModel(nn.Module):
    """A decoder-only Transformer with a next-token head."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.model = Decoder(config, vocab_size)
        self.output_dropout = nn.Dropout(config.output_dropout)
        self.lm_head = nn.Linear(config.hidden_size, vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.initialize()

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return the logits [B, T, V] of the token after each of `ids_BT`."""
        return self.lm_head(self.output_dropout(self.model(ids_BT)))

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw new weights from torch's global generator: every matrix normal, every norm 1.

        The standard deviation is `initializer_range`; of the two projections of a block that write to the residual
        stream, it is divided by the square root of their number, 2 * layers (Radford et al. 2019, section 2.3). Of an
        embedding that is tied to the head it is at most 1 / C: the last norm undoes its scale in the stream, and a
        wider one would have each token predict itself, far above the loss ln V of a model that knows nothing.
        """
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(parameter, std=std / (2 * self.config.num_hidden_layers) ** 0.5)
            elif parameter is self.model.embed_tokens.weight and self.config.tie_word_embeddings:
                nn.init.normal_(parameter, std=min(std, 1 / self.config.hidden_size))
            else:
                nn.init.normal_(parameter, std=std)


def weight_shapes(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model's state dict, without the memory for them."""
    return {name: tuple(tensor.shape) for name, tensor in _without_memory(config, vocab_size).state_dict().items()}


def count_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Return the number of a model's parameters, a tied head's being the embedding's, without the memory for them."""
    return sum(parameter.numel() for parameter in _without_memory(config, vocab_size).parameters())


def _without_memory(config: ModelConfig, vocab_size: int) -> LanguageModel:
    with torch.device("meta"):
        return LanguageModel(config, vocab_size)
