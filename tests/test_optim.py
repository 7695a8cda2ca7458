"""The optimizer and its learning rate, against torch.optim's own."""

import itertools

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from textgen.config import ModelConfig, TrainingConfig
from textgen.model import LanguageModel
from textgen.optim import build_optimizer, lr_at

PEAK, FLOOR = 3e-3, 2e-4


def schedule(warmup_steps: int, total_steps: int) -> list[float]:
    training = TrainingConfig(
        learning_rate=PEAK, min_learning_rate=FLOOR, warmup_steps=warmup_steps, max_steps=total_steps
    )
    return [lr_at(step, total_steps, training) for step in range(total_steps + 1)]


def test_only_matrices_decay():
    model = LanguageModel(ModelConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2), 50)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    training = TrainingConfig(learning_rate=0.1, weight_decay=0.5, adam_epsilon=1.0)
    optimizer = build_optimizer(model, training)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1.0 if "norm" in name else 1 - 0.1 * 0.5
        torch.testing.assert_close(parameter.detach(), before[name] * kept, msg=name)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_optimized_once(tied):
    config = ModelConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, tie_word_embeddings=tied)
    model = LanguageModel(config, 50)
    optimized = [id(parameter) for group in build_optimizer(model, TrainingConfig()).param_groups
                 for parameter in group["params"]]  # fmt: skip
    assert sorted(optimized) == sorted({id(parameter) for parameter in model.parameters()})


@pytest.mark.parametrize(("warmup_steps", "total_steps"), [(10, 100), (1, 7), (99, 100)])
def test_the_learning_rate_rises_linearly_to_the_peak_and_falls_to_the_minimum(warmup_steps, total_steps):
    rates = schedule(warmup_steps, total_steps)
    warmup, fall = rates[:warmup_steps], rates[warmup_steps:]
    assert warmup == pytest.approx([PEAK * (step + 1) / warmup_steps for step in range(warmup_steps)])
    assert max(rates) == fall[0] == PEAK
    assert fall[-1] == pytest.approx(FLOOR)
    assert all(later < earlier for earlier, later in itertools.pairwise(fall))


@pytest.mark.parametrize(("warmup_steps", "total_steps"), [(0, 50), (1, 20), (10, 100)])
def test_the_learning_rate_is_that_of_torchs_schedulers(warmup_steps, total_steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=PEAK)
    scheduler = cosine = CosineAnnealingLR(optimizer, total_steps - warmup_steps, eta_min=FLOOR)
    if warmup_steps:
        start = 1 / warmup_steps  # reached at warmup_steps - 1; LinearLR's last step is its total_iters
        linear = LinearLR(optimizer, start_factor=start, total_iters=max(1, warmup_steps - 1))
        scheduler = SequentialLR(optimizer, [linear, cosine], milestones=[warmup_steps])
    expected = []
    for _ in range(total_steps + 1):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert schedule(warmup_steps, total_steps) == pytest.approx(expected)


def test_fused_steps_are_those_of_plain_adamw():
    torch.manual_seed(0)
    x, y = torch.randn(32, 8), torch.randn(32, 4)
    ours = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    plain = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    plain.load_state_dict(ours.state_dict())
    training = TrainingConfig(
        learning_rate=1e-2, weight_decay=0.3, adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-4, max_grad_norm=1.0
    )
    groups = [
        {"params": [plain[0].weight, plain[2].weight], "weight_decay": 0.3},
        {"params": [plain[0].bias, plain[2].bias], "weight_decay": 0.0},
    ]
    oracle = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.9), eps=1e-4, foreach=False, fused=False)
    for model, optimizer in [(ours, build_optimizer(ours, training)), (plain, oracle)]:
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    for actual, expected in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)
