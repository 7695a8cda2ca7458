"""The optimizers and their schedules, against torch.optim's own."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

import textgen.training.optim
from textgen.model.transformer import LanguageModel
from textgen.sections import ModelConfig, TrainingConfig
from textgen.training.optim import build_optimizers, lr_at, orthogonalize, set_schedule, take_step, weight_decay_at

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
    (optimizer,) = build_optimizers(model, training)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1.0 if "norm" in name else 1 - 0.1 * 0.5
        torch.testing.assert_close(parameter.detach(), before[name] * kept, msg=name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_optimized_once(optimizer, tied):
    config = ModelConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, tie_word_embeddings=tied)
    model = LanguageModel(config, 50)
    optimizers = build_optimizers(model, TrainingConfig(optimizer=optimizer))
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    optimized = [id(parameter) for group in groups for parameter in group["params"]]
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
    for model, optimizer in [(ours, build_optimizers(ours, training)[0]), (plain, oracle)]:
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    for actual, expected in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("precision", "dtype", "steps"), [("fp32", torch.float32, 5), ("bf16", torch.bfloat16, 1)])
def test_muon_moves_the_matrices_of_the_blocks_as_torchs_muon_and_adamw_the_rest(precision, dtype, steps, monkeypatch):
    if precision == "fp32":  # torch always rounds to bf16, ours on a CPU only where the training is in bf16
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    orthogonalized = []
    monkeypatch.setattr(
        textgen.training.optim, "orthogonalize",
        lambda matrices, *settings: orthogonalized.append(matrices.dtype) or orthogonalize(matrices, *settings),
    )  # fmt: skip
    torch.manual_seed(0)
    config = ModelConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, tie_word_embeddings=False)
    ours, theirs = LanguageModel(config, 50), LanguageModel(config, 50)
    theirs.load_state_dict(ours.state_dict())
    before = copy.deepcopy(ours.state_dict())
    training = TrainingConfig(
        optimizer="muon", learning_rate=1e-2, muon_momentum=0.9, weight_decay=0.2, precision=precision
    )
    matrices, others, norms = [], [], []
    for name, parameter in theirs.named_parameters():
        in_blocks = "layers" in name and parameter.dim() == 2
        (matrices if in_blocks else norms if parameter.dim() == 1 else others).append(parameter)
    oracles = [
        torch.optim.Muon(matrices, lr=1e-2, momentum=0.9, weight_decay=0.2, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [{"params": others, "weight_decay": 0.2}, {"params": norms, "weight_decay": 0.0}],
            lr=1e-2, betas=(0.9, 0.95), fused=False,
        ),
    ]  # fmt: skip
    ids_BT = torch.randint(50, (4, 9))
    for model, optimizers in [(ours, build_optimizers(ours, training)), (theirs, oracles)]:
        for _ in range(steps):
            logits_BTV = model(ids_BT[:, :-1])
            nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten()).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    assert set(orthogonalized) == {dtype}
    for name, expected in theirs.named_parameters():
        actual = ours.get_parameter(name)
        if precision == "bf16" and any(expected is matrix for matrix in matrices):
            error = (actual - expected).norm() / (expected - before[name]).norm()
            assert error < 0.03, name  # each kernel rounds bf16 differently
        else:
            torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_bad_step_moves_neither_parameters_nor_moments(optimizer):
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1), 50)
    optimizers = build_optimizers(model, TrainingConfig(optimizer=optimizer))

    def step(gradient: float, is_bad: float) -> list:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        take_step(optimizers, torch.tensor(is_bad))
        assert all(parameter.grad is None for parameter in model.parameters())
        return [model.state_dict(), *(optimizer.state_dict()["state"] for optimizer in optimizers)]

    after_one = copy.deepcopy(step(1.0, 0.0))
    torch.testing.assert_close(step(torch.nan, 1.0), after_one, atol=0, rtol=0)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(step(1.0, 0.0), after_one, atol=0, rtol=0)


def test_warmup_stable_decay_is_flat_and_then_a_line():
    training = TrainingConfig(
        schedule="wsd", learning_rate=PEAK, min_learning_rate=FLOOR, warmup_steps=10, max_steps=100, decay_fraction=0.3
    )
    rates = [lr_at(step, 100, training) for step in range(101)]
    assert rates[:10] == pytest.approx([PEAK * (step + 1) / 10 for step in range(10)])
    assert rates[10:71] == [PEAK] * 61
    assert rates[70:] == pytest.approx([PEAK + (FLOOR - PEAK) * step / 30 for step in range(31)])


def test_a_decay_over_all_steps_begins_after_the_warm_up():
    training = TrainingConfig(
        schedule="wsd", learning_rate=PEAK, min_learning_rate=0.0, warmup_steps=50, max_steps=100, decay_fraction=1.0
    )
    rates = [lr_at(step, 100, training) for step in range(101)]
    assert rates[49] == rates[50] == PEAK
    assert rates[51:] == pytest.approx([PEAK * (50 - step) / 50 for step in range(1, 51)])


def test_weight_decay_follows_its_own_cosine():
    constant = TrainingConfig(weight_decay=0.3)
    assert {weight_decay_at(step, 50, constant) for step in range(50)} == {0.3}
    moving = TrainingConfig(weight_decay=0.1, final_weight_decay=0.5)
    oracle = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.1)
    scheduler = CosineAnnealingLR(oracle, T_max=50, eta_min=0.5)
    for step in range(51):
        assert weight_decay_at(step, 50, moving) == pytest.approx(oracle.param_groups[0]["lr"])
        oracle.step()
        scheduler.step()


def test_the_schedule_reaches_every_group_and_norms_never_decay():
    model = LanguageModel(ModelConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1), 50)
    training = TrainingConfig(optimizer="muon", weight_decay=0.1, final_weight_decay=0.5)
    optimizers = build_optimizers(model, training)
    rate = set_schedule(optimizers, 500, 1000, training)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    assert {group["lr"] for group in groups} == {rate} == {lr_at(500, 1000, training)}
    assert sorted(group["weight_decay"] for group in groups) == pytest.approx([0.0, 0.3, 0.3])
