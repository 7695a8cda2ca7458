"""Where the tensors are and in what precision: the device, its autocast, its cores, and the seeds of a step."""

import ctypes
import hashlib
import os
import platform
import random
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy
import torch

from textgen.cores import usable_cores
from textgen.errors import InputError

CPU_INFO = Path("/proc/cpuinfo")
TRITON_CAPABILITY = (7, 0)  # the oldest GPUs that torch.compile writes for
COMPILER = "clang++" if sys.platform == "darwin" else "g++"  # what torch.compile starts, unless CXX names another
SUMMED, SUMS = 2**28, 5  # floats, a gibibyte, and how often they are summed
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def choose_device(name: str, asked_by: str = "training.device") -> torch.device:
    """Return the device that a setting or an option asks for; `auto` is the GPU where there is one.

    Of several processes on a host each has its own GPU.

    Raises:
        InputError: cuda is asked for and absent.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{asked_by}='cuda': this machine has no CUDA GPU")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Return the name that the maker of a GPU or of the CPU gave it, `cpu` where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or "cpu"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "cpu")


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Return the context in which matrices multiply in bf16, if `training.precision` and the device say so."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if uses_bf16(device, precision) else nullcontext()


def uses_bf16(device: torch.device, precision: str) -> bool:
    """Return whether matrices multiply in bf16: where asked for, or on a GPU that has it."""
    return precision == "bf16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )


def has_amx() -> bool:
    """Return whether the cores have Intel's AMX, and so multiply in bf16 faster than in fp32."""
    return CPU_INFO.exists() and " amx_bf16" in CPU_INFO.read_text()


def compiles(device: torch.device, setting: bool | str) -> bool:
    """Return whether to use torch.compile: as `training.compile` says, or on a GPU that its compiler knows.

    On a CPU only a long training wins back the seconds that compiling takes.
    """
    if setting != "auto":
        return setting is True
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= TRITON_CAPABILITY


def check_compiler(device: torch.device, setting: bool | str) -> None:
    """Check that torch.compile has what it needs where `training.compile` asks for it.

    Raises:
        InputError: it is asked for on a CPU, and there is no C++ compiler.
    """
    if setting is True and device.type == "cpu" and not shutil.which(compiler := os.environ.get("CXX", COMPILER)):
        raise InputError(f"training.compile=true needs a C++ compiler on a CPU, and there is no {compiler!r}")


def prepare_cpu(local_processes: int) -> None:
    """Share the cores among the processes of this host, and keep freed memory instead of returning it.

    Tensors of some MB are made and freed at every step: returned to the system, each is paid for in page faults anew.
    """
    share_cores(local_processes)
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):  # glibc only
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def share_cores(local_processes: int = 1) -> None:
    """Share the cores that a container may use among the processes of this host.

    OMP_NUM_THREADS overrides the share of a process that is alone (torchrun sets it to 1 for several, unasked).
    """
    if local_processes > 1 or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores() // local_processes))


def read_bandwidth(device: torch.device) -> float:
    """Return the bytes a second that a sum over a gibibyte reads, compiled where there is a compiler."""
    numbers = torch.ones(SUMMED, device=device)
    total: Callable[[torch.Tensor], torch.Tensor] = torch.compile(torch.sum)
    try:
        total(numbers)
    except Exception:  # of the compiler
        total = torch.sum
    seconds = []
    for _ in range(SUMS):
        started = time.perf_counter()
        total(numbers).item()
        seconds.append(time.perf_counter() - started)
    return numbers.nbytes / min(seconds)


def seed_everything(*parts: int) -> None:
    """Seed python, numpy, torch and CUDA from integers: the seed and, in a training, the place in it."""
    seed = int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")
    random.seed(seed)
    numpy.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would format stack traces for devices not in use
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
