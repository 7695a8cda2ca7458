"""How fast a training is: its FLOPs against torch's own count, its seconds by phase, the device's peak."""

import itertools
import resource
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.trainings import Interruption, ignore
from textgen.model.transformer import LanguageModel
from textgen.sections import ModelConfig
from textgen.training import meters
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.meters import Stopwatch, flops_per_token, matrix_peak, memory_peak_bytes
from textgen.training.train import train

CPU = torch.device("cpu")
SHAPES = {
    "tied": ModelConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2),
    "untied": ModelConfig(hidden_size=24, intermediate_size=40, num_attention_heads=3, tie_word_embeddings=False),
    "grouped queries": ModelConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2),
    "wide heads": ModelConfig(hidden_size=20, intermediate_size=64, num_attention_heads=2, head_dim=48),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_flops_of_a_token_are_those_that_torch_counts_but_for_masks_and_norms(shape):
    """torch counts the attention that the causal mask hides, as many products again, and not the norms' products.

    6 FLOPs for each norm's weight are ours: what remains must be equal to the last one.
    """
    config, vocab_size, B, T = SHAPES[shape], 101, 3, 40
    model = LanguageModel(config, vocab_size)
    ids_BT = torch.randint(vocab_size, (B, T + 1))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it cannot look into fused kernels
        F.cross_entropy(model(ids_BT[:, :-1]).flatten(0, 1), ids_BT[:, 1:].flatten()).backward()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    norms = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 1)
    masked = 6 * config.num_hidden_layers * config.num_attention_heads * config.resolved_head_dim * T
    ours = flops_per_token(config, parameters, vocab_size, T)
    assert B * T * (ours - 6 * norms + masked) == counter.get_total_flops()
    assert 6 * norms < 0.03 * ours


def test_a_stopwatch_adds_up_the_seconds_of_each_phase(monkeypatch):
    readings = iter([0.0, 2.0, 10.0, 10.5, 20.0, 23.0, 30.0, 31.0])
    monkeypatch.setattr(meters, "time", SimpleNamespace(monotonic=lambda: next(readings)))
    watch = Stopwatch({"saving": 7.0})
    for phase in ("train", "validation", "train"):
        with watch(phase):
            pass
    with pytest.raises(ZeroDivisionError), watch("saving"):
        raise ZeroDivisionError
    assert watch.seconds == {"train": 5.0, "validation": 0.5, "saving": 8.0}


def test_a_stopwatch_counts_on_in_the_seconds_it_was_given():
    seconds = {"train": 1.0}
    watch = Stopwatch(seconds)
    with watch("train"):
        pass
    assert watch.seconds is seconds and seconds["train"] > 1.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_measured_peak_of_a_cpu_is_near_what_a_product_takes(precision, monkeypatch):
    monkeypatch.setitem(meters.MEASURED_SIZE, "cpu", 256)  # bf16 is slow where there are no units for it
    matrix_peak.cache_clear()
    dtype, size = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision], meters.MEASURED_SIZE["cpu"]
    left, right = torch.rand(2, size, size, dtype=dtype)

    def best_rate() -> float:
        seconds = []
        for _ in range(50):  # of so many, nothing else on the machine holds every one up
            started = time.perf_counter()
            left @ right
            seconds.append(time.perf_counter() - started)
        return 2 * size**3 / min(seconds)

    before, peak, after = best_rate(), matrix_peak(CPU, precision), best_rate()
    assert 0.1 * max(before, after) < peak < 10 * max(before, after)


def test_the_peak_is_measured_once(monkeypatch):
    peak = matrix_peak(CPU, "fp32")
    monkeypatch.setattr(meters.torch, "mm", None)
    assert matrix_peak(CPU, "fp32") == peak


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12),
        ("NVIDIA H100 NVL", 835e12),
    ],
)  # fmt: skip
def test_the_peak_of_a_known_gpu_is_its_data_sheets(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert matrix_peak.__wrapped__(torch.device("cuda", 0), "auto") == peak


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux only")
def test_the_peak_of_memory_is_in_bytes_and_counts_what_is_added():
    before, resident = memory_peak_bytes(CPU), resident_bytes()
    assert before >= 0.9 * resident
    more = before - resident + 2**28
    filled = torch.full((more,), 1, dtype=torch.uint8)
    after = memory_peak_bytes(CPU)
    assert 2**27 < after - before < 2**29
    del filled
    assert memory_peak_bytes(CPU) >= after - 2**20, "a peak does not fall"  # the kernel counts in batches a thread


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_speed_of_a_training_is_consistent(accumulated, tokens, make_config, tmp_path):
    config = make_config(training={"gradient_accumulation_steps": accumulated})
    manifest = train(tokens, config, tmp_path / "out", ignore)
    measured = manifest.speed
    assert measured.tokens_per_second * measured.seconds["train"] == pytest.approx(manifest.tokens_trained)
    assert manifest.tokens_trained == 20 * 8 * 16 * accumulated
    assert set(measured.seconds) == {"train", "validation", "saving"}
    assert all(seconds > 0 for seconds in measured.seconds.values())
    assert manifest.train_seconds == pytest.approx(sum(measured.seconds.values()))
    assert measured.flops_per_token == flops_per_token(config.model, manifest.parameters, tokens.vocab_size, 16)
    assert measured.mfu == pytest.approx(measured.tokens_per_second * measured.flops_per_token / measured.peak_flops)
    assert 0 < measured.mfu < 1
    assert measured.peak_flops == matrix_peak(CPU, "auto")
    assert 2**24 < measured.memory_peak_bytes <= 1.01 * memory_peak_bytes(CPU)  # the kernel counts in batches


def test_seconds_count_on_after_an_interruption(tokens, make_config, tmp_path, monkeypatch):
    """On a clock that moves on by a second at each reading, every entry of a phase takes one."""
    clock = itertools.count()
    stub = SimpleNamespace(monotonic=lambda: float(next(clock)), perf_counter=time.perf_counter)
    monkeypatch.setattr(meters, "time", stub)

    def interrupt(step: int, figures: dict[str, float]) -> None:
        if step == 11:
            raise Interruption

    def trained(name: str) -> CheckpointManifest:
        return train(tokens, make_config(training={"log_every": 1}), tmp_path / name, ignore)

    whole = trained("whole")
    assert whole.speed.seconds == {"train": 20 + 20, "validation": 5, "saving": 4}
    with pytest.raises(Interruption):
        train(tokens, make_config(training={"log_every": 1}), tmp_path / "parts", interrupt)
    parts = trained("parts")
    assert parts.speed.seconds == whole.speed.seconds
    assert parts.speed.tokens_per_second == whole.speed.tokens_per_second == 20 * 8 * 16 / 40
    assert parts.train_seconds == whole.train_seconds


def test_the_logged_speed_is_that_of_the_steps_since_the_last_line(tokens, make_config, tmp_path, monkeypatch):
    clock = itertools.count()
    stub = SimpleNamespace(monotonic=lambda: float(next(clock)), perf_counter=time.perf_counter)
    monkeypatch.setattr(meters, "time", stub)
    lines: list[dict[str, float]] = []

    def on_metrics(step: int, figures: dict[str, float]) -> None:
        if "train/mfu" in figures:
            lines.append(figures)

    manifest = train(tokens, make_config(training={"max_steps": 12}), tmp_path / "out", on_metrics)
    rates = [5 * 8 * 16 / 6, 5 * 8 * 16 / 6, 2 * 8 * 16 / 3]  # a second for each step and one for reading them
    assert [line["train/tokens_per_second"] for line in lines] == rates
    assert [line["seconds/train"] for line in lines] == [6, 12, 15]
    per_token = manifest.speed.flops_per_token / manifest.speed.peak_flops
    assert [line["train/mfu"] for line in lines] == pytest.approx([rate * per_token for rate in rates])
