"""The energy that a host's own counters say it took: its processors' (Linux's powercap), its NVIDIA GPUs' (NVML)."""

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
PACKAGES = "intel-rapl:?"  # AMD's too; with a second colon it is a part of a package
NVML = "libnvidia-ml.so.1"


@dataclass
class Counter:
    """A counter of energy that only grows, but for its wrap."""

    part: str  # cpu or gpu
    read: Callable[[], int]
    per_joule: int
    wraps_at: int
    last: int

    def joules(self) -> float:
        """Return the joules since the last reading. The next reading includes what a failed one missed."""
        try:
            last, self.last = self.last, self.read()
        except OSError:
            return 0.0
        return (self.last - last) % self.wraps_at / self.per_joule


class EnergyMeter:
    """Joules by part of this host, whatever ran on it, on top of those of an earlier process."""

    def __init__(self, joules: dict[str, float], device: torch.device, processes: int) -> None:
        self.joules = joules
        self.counters = [*_packages(), *(_gpus(processes) if device.type == "cuda" else ())]

    def update(self) -> None:
        """Add what was used since the meter was made or last updated; where nothing can be read, nothing is added."""
        for counter in self.counters:
            self.joules[counter.part] = self.joules.get(counter.part, 0.0) + counter.joules()


def _packages() -> Iterator[Counter]:
    """Yield the counters of the processors' packages, in microjoules; most systems let only root read them."""
    for package in sorted(POWERCAP.glob(PACKAGES)):

        def read(file: Path = package / "energy_uj") -> int:
            return int(file.read_text())

        try:
            yield Counter("cpu", read, 10**6, int((package / "max_energy_range_uj").read_text()) + 1, read())
        except (OSError, ValueError):
            continue


def _gpus(processes: int) -> Iterator[Counter]:
    """Yield the counters of the GPUs of this host's processes, in millijoules."""
    try:
        nvml = ctypes.CDLL(NVML)
    except OSError:
        return
    if nvml.nvmlInit_v2():
        return
    for index in range(processes):
        handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
        uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}".encode()

        def read(handle: ctypes.c_void_p = handle, millijoules: ctypes.c_ulonglong = millijoules) -> int:
            if code := nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
                raise OSError(f"NVML's error {code}")
            return millijoules.value

        try:
            if not nvml.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)):
                yield Counter("gpu", read, 10**3, 2**64, read())
        except OSError:  # a GPU older than Volta has none
            continue
