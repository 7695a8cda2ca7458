"""The Transformer: causal, the same as transformers' Qwen3, and ignorant at the start."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from textgen.model.loss import next_token_nats
from textgen.model.pretrained import qwen3_config
from textgen.model.transformer import Attention, EmbeddingDropout, LanguageModel, rotary_tables
from textgen.sections import ModelConfig

VOCAB_SIZE = 67
PLAIN = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**PLAIN, "num_key_value_heads": 2}
WIDE_HEADS = {**GROUPED, "head_dim": 10, "rope_theta": 500.0}
ONE_KEY_VALUE_HEAD = {**PLAIN, "num_key_value_heads": 1, "rms_norm_eps": 1e-3}
SHAPES = [PLAIN, GROUPED, WIDE_HEADS, ONE_KEY_VALUE_HEAD]


def new_model(vocab_size: int = VOCAB_SIZE, **config) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(ModelConfig(**config), vocab_size)


def perturbed(module: torch.nn.Module) -> torch.nn.Module:
    """Move every weight, the norms' too, far from where it starts, so that each one matters."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module


def random_ids(batch: int, length: int, vocab_size: int = VOCAB_SIZE) -> Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SHAPES)
def test_future_tokens_do_not_change_past_logits(shape):
    model, embedded = perturbed(new_model(**shape)), []
    model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: embedded.append(output))
    logits_BTV = model(random_ids(2, 9))
    for t in range(9):
        (gradient_BTC,) = torch.autograd.grad(logits_BTV[:, t].square().sum(), embedded, retain_graph=True)
        size_BT = gradient_BTC.abs().sum(-1)
        assert (size_BT[:, t + 1 :] == 0).all()
        assert (size_BT[:, : t + 1] > 0).all()


def naive_attention(attention: Attention, x: Tensor, config: ModelConfig) -> Tensor:
    """Attention from its definition: one head and one position at a time, a pair of channels as a complex number."""
    D, H = config.resolved_head_dim, config.num_attention_heads
    queries_per_key = H // config.resolved_num_key_value_heads
    B, T, _ = x.shape

    def heads(projection: torch.nn.Linear, norm: torch.nn.Module | None = None) -> Tensor:
        x_BTHD = (x @ projection.weight.T).view(B, T, -1, D)
        if norm is None:
            return x_BTHD
        x_BTHD = torch.nn.functional.rms_norm(x_BTHD, (D,), norm.weight, norm.eps)
        frequencies = torch.tensor([config.rope_theta ** (-2 * i / D) for i in range(D // 2)])
        turns_T1D = torch.polar(torch.ones(()), torch.arange(T)[:, None, None] * frequencies)
        turned = torch.complex(x_BTHD[..., : D // 2], x_BTHD[..., D // 2 :]) * turns_T1D
        return torch.cat((turned.real, turned.imag), dim=-1)

    q_BTHD, k_BTKD = heads(attention.q_proj, attention.q_norm), heads(attention.k_proj, attention.k_norm)
    v_BTKD = heads(attention.v_proj)
    out_BTHD = torch.zeros(B, T, H, D)
    for t, h in itertools.product(range(T), range(H)):
        k = h // queries_per_key
        scores_BS = torch.einsum("bd,bsd->bs", q_BTHD[:, t, h], k_BTKD[:, : t + 1, k]) / math.sqrt(D)
        out_BTHD[:, t, h] = torch.einsum("bs,bsd->bd", scores_BS.softmax(-1), v_BTKD[:, : t + 1, k])
    return out_BTHD.flatten(2) @ attention.o_proj.weight.T


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_is_a_masked_softmax_over_rotated_normed_queries_and_keys(shape):
    config = ModelConfig(**shape)
    torch.manual_seed(0)
    attention, x = perturbed(Attention(config)), torch.randn(2, 7, config.hidden_size)
    with torch.no_grad():
        out = attention(x, *rotary_tables(config, 7, x.device, x.dtype))
        torch.testing.assert_close(out, naive_attention(attention, x, config), atol=1e-5, rtol=1e-5)


def stock_qwen3(ours: LanguageModel, dtype: torch.dtype) -> torch.nn.Module:
    """Return transformers' model of the same shape and weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    stock_config = Qwen3Config(**qwen3_config(ours.config, VOCAB_SIZE, seq_length=64, end_id=0))
    # Built in the dtype, as from_pretrained does: `.to` would round the rotary frequencies too.
    stock = Qwen3ForCausalLM._from_config(stock_config, attn_implementation="sdpa", dtype=dtype).eval()
    stock.load_state_dict(ours.state_dict())
    return stock


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_those_of_transformers_qwen3_bit_for_bit(shape, tied, dtype):
    ours = perturbed(new_model(**shape, tie_word_embeddings=tied)).to(dtype).eval()
    stock = stock_qwen3(ours, dtype)
    for batch, length in [(1, 1), (3, 5), (2, 33)]:
        ids_BT = random_ids(batch, length)
        with torch.no_grad():
            # A cache would lay keys and values out otherwise, and the kernel's last bit follows that at length 33.
            assert torch.equal(ours(ids_BT), stock(ids_BT, use_cache=False).logits)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_transformers_qwen3(shape, dtype, tolerance):
    ours, ids_BT = perturbed(new_model(**shape)), random_ids(3, 9)
    stock = stock_qwen3(ours, torch.float32)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = ours(ids_BT), stock(ids_BT, use_cache=False).logits
    gradients = []
    for model, logits_BTV in zip((ours, stock), logits, strict=True):
        logits_BTV.float().log_softmax(-1)[..., 0].sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        difference = (gradient - gradients[1][name]).norm() / gradients[1][name].norm()
        assert difference < tolerance, name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("hidden_size", "layers", "vocab_size"), [(16, 1, 300), (32, 2, 1000), (64, 4, 8192)])
def test_a_new_model_knows_nothing(hidden_size, layers, vocab_size, tied):
    model = new_model(
        vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        tie_word_embeddings=tied,
    )
    ids_BT = random_ids(8, 65, vocab_size)
    with torch.no_grad():
        loss_nats = next_token_nats(model, ids_BT[:, :-1], ids_BT[:, 1:]).mean().item()
    assert loss_nats == pytest.approx(math.log(vocab_size), rel=0.01)


@pytest.mark.parametrize(
    "option", ["dropout", "attention_dropout", "embedding_dropout", "input_dropout", "output_dropout"]
)
def test_dropout_is_active_while_training_and_the_identity_after(option):
    model, ids_BT = perturbed(new_model(**PLAIN, **{option: 0.5})), random_ids(2, 8)
    without = new_model(**PLAIN)
    without.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert not torch.equal(model.train()(ids_BT), model(ids_BT))
        assert torch.equal(model.eval()(ids_BT), without(ids_BT))


def test_embedding_dropout_drops_every_occurrence_of_a_type():
    torch.manual_seed(0)
    dropout, ids_BT = EmbeddingDropout(0.5), random_ids(4, 50, vocab_size=10)
    x_BT = dropout(torch.ones(4, 50, 3), ids_BT, vocab_size=10)
    kept = {int(type_id): set(x_BT[ids_BT == type_id].flatten().tolist()) for type_id in ids_BT.unique()}
    assert all(values in ({0.0}, {2.0}) for values in kept.values())
    assert {0.0} in kept.values() and {2.0} in kept.values()


def test_output_dropout_zeroes_what_the_head_reads():
    model = new_model(**PLAIN, output_dropout=0.5)
    read = []
    model.lm_head.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    model.train()(random_ids(2, 8))
    assert 0.3 < (read[0] == 0).float().mean() < 0.7
