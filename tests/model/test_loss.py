"""The chunked loss: the same value and the same gradients as PyTorch's own, and no logits left in memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from textgen.model import loss
from textgen.model.loss import SAFE_LOGIT, NextTokenLoss, cross_entropy_sum, next_token_nats
from textgen.model.transformer import LanguageModel
from textgen.sections import ModelConfig

V, C = 50, 8


def problem(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, C, requires_grad=True), torch.randn(V, C, requires_grad=True), torch.randint(V, (rows,))


def gradients(value: Tensor, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, leaves))


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("rows_in_memory", [1, 3, 32, 40, 1000])
def test_loss_and_gradients_are_those_of_cross_entropy_in_chunks_of_any_size(rows, rows_in_memory, monkeypatch):
    monkeypatch.setitem(loss.LOGITS_IN_MEMORY, "cpu", rows_in_memory * V)
    hidden_NC, weight_VC, y_N = problem(rows)
    ours, theirs = cross_entropy_sum(hidden_NC, weight_VC, y_N), F.cross_entropy(hidden_NC @ weight_VC.T, y_N)
    torch.testing.assert_close(ours / rows, theirs)
    expected = gradients(theirs, hidden_NC, weight_VC)
    torch.testing.assert_close(gradients(ours / rows, hidden_NC, weight_VC), expected)


@pytest.mark.parametrize("bound", [0.1, 0.99 * SAFE_LOGIT, 1.01 * SAFE_LOGIT, 1000.0])
@pytest.mark.parametrize("aligned", [False, True], ids=["any direction", "the largest logit that can be"])
def test_small_and_large_logits_have_the_loss_and_gradients_of_double_precision(bound, aligned):
    hidden_NC, weight_VC, y_N = problem(40)
    with torch.no_grad():
        if aligned:
            weight_VC[0], weight_VC[1] = hidden_NC[0], -hidden_NC[0]
            y_N[0] = 1
        hidden_NC *= bound / (hidden_NC.norm(dim=1).amax() * weight_VC.norm(dim=1).amax())
    ours = cross_entropy_sum(hidden_NC, weight_VC, y_N)
    found = [ours, *gradients(ours, hidden_NC, weight_VC)]
    theirs = F.cross_entropy(hidden_NC.double() @ weight_VC.double().T, y_N, reduction="sum")
    for figure, expected in zip(found, [theirs, *gradients(theirs, hidden_NC, weight_VC)], strict=True):
        torch.testing.assert_close(figure.float(), expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch before 2.13")
def test_loss_and_gradients_are_those_of_linear_cross_entropy():
    hidden_NC, weight_VC, y_N = problem(64)
    ours, theirs = (f(hidden_NC, weight_VC, y_N) for f in (cross_entropy_sum, F.linear_cross_entropy))
    expected = gradients(theirs, hidden_NC, weight_VC)
    torch.testing.assert_close(gradients(ours / 64, hidden_NC, weight_VC), expected)


@pytest.mark.parametrize("rows_at_once", [1, 40, 1000])
def test_under_autocast_the_products_are_in_bf16_and_the_gradients_in_fp32(rows_at_once, monkeypatch):
    monkeypatch.setattr(loss, "ROWS_IN_BF16", rows_at_once)
    hidden_NC, weight_VC, y_N = problem(64)
    exact = gradients(cross_entropy_sum(hidden_NC, weight_VC, y_N), hidden_NC, weight_VC)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = gradients(cross_entropy_sum(hidden_NC, weight_VC, y_N), hidden_NC, weight_VC)
    for ours, expected in zip(rounded, exact, strict=True):
        assert ours.dtype == torch.float32
        assert 0 < (ours - expected).abs().max() < 0.1


@pytest.mark.parametrize(("bf16", "expected_nats"), [(False, 2e4), (True, 87.3)])
def test_an_impossible_target_has_a_finite_loss_and_gradient(bf16, expected_nats):
    hidden_NC, weight_VC = torch.tensor([[1e4]], requires_grad=True), torch.tensor([[1.0], [-1.0]], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        nats = cross_entropy_sum(hidden_NC, weight_VC, torch.tensor([1]))
    assert nats.item() == pytest.approx(expected_nats, rel=1e-3)
    assert all(gradient.isfinite().all() for gradient in gradients(nats, hidden_NC, weight_VC))


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_what_is_not_finite_is_not_finite_after(value):
    hidden_NC, weight_VC, y_N = problem(4)
    with torch.no_grad():
        hidden_NC[2, 1] = value
    assert not cross_entropy_sum(hidden_NC, weight_VC, y_N).isfinite()


def test_the_gradient_cannot_be_taken_twice():
    hidden_NC, weight_VC, y_N = problem(4)
    nats = cross_entropy_sum(hidden_NC, weight_VC, y_N)
    nats.backward(retain_graph=True)
    with pytest.raises(AttributeError):
        nats.backward()


@pytest.mark.parametrize("tied", [True, False])
def test_a_models_loss_and_gradients_are_those_of_its_logits(tied, monkeypatch):
    monkeypatch.setitem(loss.LOGITS_IN_MEMORY, "cpu", 5 * V)
    torch.manual_seed(0)
    config = ModelConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=tied
    )
    model = LanguageModel(config, V)
    ids_BT = torch.randint(V, (3, 9))
    x_BT, y_BT = ids_BT[:, :-1], ids_BT[:, 1:]
    nats_BT = -model(x_BT).log_softmax(-1).gather(-1, y_BT[..., None]).squeeze(-1)
    torch.testing.assert_close(next_token_nats(model, x_BT, y_BT), nats_BT.detach())
    ours = NextTokenLoss(model, compile_blocks=False)(x_BT, y_BT)
    torch.testing.assert_close(ours, nats_BT.sum())
    expected = gradients(nats_BT.sum(), *model.parameters())
    torch.testing.assert_close(gradients(ours, *model.parameters()), expected)


@pytest.mark.parametrize("rows_in_memory", [1, 3, 32, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nats_are_those_of_cross_entropy_in_chunks_of_any_size(rows_in_memory, dtype, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setitem(loss.LOGITS_IN_MEMORY, "cpu", rows_in_memory * V)
    monkeypatch.setattr(loss, "ROWS_IN_BF16", rows_in_memory)
    config = ModelConfig(hidden_size=C, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    model, ids_BT = LanguageModel(config, V).eval(), torch.randint(V, (7, 10))
    x_BT, y_BT = ids_BT[:, :-1], ids_BT[:, 1:]
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        ours, logits_BTV = next_token_nats(model, x_BT, y_BT), model(x_BT)
    theirs = F.cross_entropy(logits_BTV.float().flatten(0, 1), y_BT.flatten(), reduction="none").view_as(y_BT)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs)


def test_nats_of_logits_far_apart_are_finite():
    torch.manual_seed(0)
    config = ModelConfig(hidden_size=C, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    model, ids_BT = LanguageModel(config, V).eval(), torch.randint(V, (2, 9))
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
        logits_BTV = model(ids_BT[:, :-1]).double()
    theirs = F.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none")
    assert theirs.max() > 200
    torch.testing.assert_close(next_token_nats(model, ids_BT[:, :-1], ids_BT[:, 1:]).flatten().double(), theirs)
