"""The device, its precision, its cores and its seeds."""

import random

import numpy
import pytest
import torch

from textgen.errors import InputError
from textgen.model import device as module
from textgen.model.device import (
    autocast,
    choose_device,
    device_name,
    prepare_cpu,
    seed_everything,
    uses_bf16,
)


@pytest.fixture
def no_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def a_gpu(monkeypatch) -> None:
    """Have torch say that there is a GPU with bf16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


def test_a_gpu_that_is_asked_for_and_absent_is_refused(no_gpu):
    with pytest.raises(InputError, match=r"^training\.device='cuda': this machine has no CUDA GPU$"):
        choose_device("cuda")
    with pytest.raises(InputError, match=r"^--device='cuda': this machine"):
        choose_device("cuda", "--device")


def test_auto_is_the_cpu_where_there_is_no_gpu(no_gpu):
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")


def test_auto_is_the_gpu_where_there_is_one(a_gpu):
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 0)
    assert choose_device("cpu") == torch.device("cpu")


def test_each_process_of_a_host_has_its_own_gpu(a_gpu, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("auto") == torch.device("cuda", 3)


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cpu", "auto", False), ("cpu", "fp32", False), ("cpu", "bf16", True),
        ("cuda", "auto", True), ("cuda", "fp32", False), ("cuda", "bf16", True),
    ],
)  # fmt: skip
def test_bf16_is_for_gpus_unless_it_is_asked_for(device, precision, expected, a_gpu):
    assert uses_bf16(torch.device(device), precision) == expected


def test_an_old_gpu_without_bf16_does_not_use_it_unasked(a_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert not uses_bf16(torch.device("cuda"), "auto")


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_matrices_multiply_in_the_precision_asked_for(precision, dtype):
    left, right = torch.ones(2, 2), torch.ones(2, 2)
    with autocast(torch.device("cpu"), precision):
        assert (left @ right).dtype == dtype
    assert (left @ right).dtype == torch.float32


@pytest.mark.parametrize(
    ("processes", "omp_threads", "threads"),
    [(1, None, 8), (2, None, 4), (3, None, 2), (16, None, 1), (1, "3", None), (2, "1", 4)],
)
def test_the_processes_of_a_host_share_its_cores(processes, omp_threads, threads, monkeypatch):
    given: list[int] = []
    monkeypatch.setattr(module, "usable_cores", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if omp_threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", omp_threads)
    prepare_cpu(processes)
    assert given == ([] if threads is None else [threads])


def draw() -> tuple[float, float, float]:
    return random.random(), float(numpy.random.rand()), torch.rand(()).item()


def test_equal_parts_seed_all_generators_equally_and_others_each_otherwise():
    draws = []
    for parts in [(1, 2, 3), (1, 2, 3), (1, 2, 4), (1, 3, 2), (1, 23), (12, 3)]:
        seed_everything(*parts)
        draws.append(draw())
    assert draws[0] == draws[1]
    for generator in range(3):
        assert len({values[generator] for values in draws}) == 5


def test_a_gpus_generators_are_seeded_as_the_cpus(a_gpu, monkeypatch):
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    seed_everything(1, 2, 3)
    assert seeds == [torch.initial_seed()]


@pytest.mark.parametrize(
    ("told", "name"),
    [("processor\t: 0\nmodel name\t: AMD EPYC 7B13\n", "AMD EPYC 7B13"), ("processor\t: 0\n", "cpu"), (None, "arm")],
)
def test_a_cpu_has_the_name_that_the_system_tells(told, name, tmp_path, monkeypatch):
    if told is not None:
        (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(module, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.processor", lambda: "arm")
    assert device_name(torch.device("cpu")) == name
