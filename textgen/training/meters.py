"""How fast a training is and how fast it could be: seconds by phase, the device's matrix peak, the share reached."""

import functools
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from textgen.model.device import uses_bf16
from textgen.sections import ModelConfig
from textgen.training.progress import Progress

# Dense bf16 matrix peaks of the makers' data sheets, in FLOP/s, by words of the device's name; the first that fits.
GPU_BF16_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
MEASURED_SIZE = {"cpu": 1024, "cuda": 8192}  # of the square matrices that are multiplied
MEASURED_TIMES = 5
PROCESS_STATUS = Path("/proc/self/status")


class Speed(BaseModel):
    """What a training's hardware gave."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens_per_second: float  # while training: without validation and saving
    flops_per_token: float
    peak_flops: float  # FLOP/s, of one device times the devices
    mfu: float  # model FLOPs utilization: the share of the peak that the model's own arithmetic reaches
    memory_peak_bytes: int
    seconds: dict[str, float]  # by phase
    joules: dict[str, float] = {}  # by part of the main process's host, where they can be read


class Stopwatch:
    """Seconds by phase, on top of those of an earlier process."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the seconds of the block as those of `phase`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - started


class Throughput:
    """Tokens a second, and the share of the matrix peak that they take."""

    def __init__(self, flops_per_token: float, peak_flops: float, tokens_per_step: int, progress: Progress) -> None:
        """Begin to count at `progress`. `peak_flops`: FLOP/s, of one device times the devices."""
        self.flops_per_token, self.peak_flops, self.tokens_per_step = flops_per_token, peak_flops, tokens_per_step
        self._last = progress.step, progress.seconds.get("train", 0.0)

    def since_last(self, progress: Progress) -> float:
        """Return the tokens a second of the steps since the last call."""
        step, seconds = self._last
        self._last = progress.step, progress.seconds["train"]
        return (progress.step - step) * self.tokens_per_step / (progress.seconds["train"] - seconds)

    def mfu(self, tokens_per_second: float) -> float:
        """Return the share of the peak that the model's own arithmetic reaches at that speed."""
        return tokens_per_second * self.flops_per_token / self.peak_flops

    def whole(self, progress: Progress, device: torch.device) -> Speed:
        """Return the speed of the whole training."""
        tokens_per_second = progress.step * self.tokens_per_step / progress.seconds["train"]
        return Speed(
            tokens_per_second=tokens_per_second,
            flops_per_token=self.flops_per_token,
            peak_flops=self.peak_flops,
            mfu=self.mfu(tokens_per_second),
            memory_peak_bytes=memory_peak_bytes(device),
            seconds=progress.seconds,
            joules=progress.joules,
        )


def flops_per_token(model: ModelConfig, parameters: int, vocab_size: int, seq_length: int) -> float:
    """Return the FLOPs of a training step a token: 6 a matrix entry that multiplies it, and attention's products.

    Chowdhery et al. 2022, arXiv:2204.02311, appendix B, but for the causal mask: attention counts the half it computes.
    """
    embedding = 0 if model.tie_word_embeddings else vocab_size * model.hidden_size  # looked up, not multiplied
    attention = 6 * model.num_hidden_layers * model.num_attention_heads * model.resolved_head_dim * seq_length
    return 6 * (parameters - embedding) + attention


@functools.cache
def matrix_peak(device: torch.device, precision: str) -> float:
    """Return the FLOP/s at which the device multiplies matrices: by its data sheet if known, else the best measured."""
    bf16 = uses_bf16(device, precision)
    if device.type == "cuda" and bf16:
        words = set(torch.cuda.get_device_name(device).replace("-", " ").split())
        for name, peak in GPU_BF16_PEAKS.items():
            if words.issuperset(name.split()):
                return peak
    size, dtype = MEASURED_SIZE[device.type], torch.bfloat16 if bf16 else torch.float32
    left, right = torch.rand(2, size, size, device=device, dtype=dtype)
    product = torch.empty_like(left)
    seconds = []
    for _ in range(MEASURED_TIMES):
        _wait_for(device)
        started = time.perf_counter()
        torch.mm(left, right, out=product)
        _wait_for(device)
        seconds.append(time.perf_counter() - started)
    if device.type == "cuda":  # not of the training
        del left, right, product
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return 2 * size**3 / min(seconds)


def memory_peak_bytes(device: torch.device) -> int:
    """Return the most memory that was in use: the tensors of a GPU, or the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if PROCESS_STATUS.exists():  # getrusage's figure begins with that of the process that started this one
        lines = PROCESS_STATUS.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
