"""The cores that a process may use: those it is bound to, and those that its container may."""

import pytest

from textgen import cores as module
from textgen.cores import usable_cores


@pytest.mark.parametrize(
    ("cpu_max", "cores"),
    [
        ("max 100000", 8), ("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 8),
        ("6000 1000", 6), ("", 8), ("1 2 3", 8),
    ],
)  # fmt: skip
def test_the_usable_cores_are_those_that_the_container_may_use(cpu_max, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(module, "CGROUP_CPU_LIMIT", tmp_path / "cpu.max")
    assert usable_cores() == 8, "without a limit"
    (tmp_path / "cpu.max").write_text(cpu_max + "\n")
    assert usable_cores() == cores


def test_without_an_affinity_the_usable_cores_are_the_machines(tmp_path, monkeypatch):
    monkeypatch.delattr(module.os, "sched_getaffinity", raising=False)  # as on macOS
    monkeypatch.setattr(module, "CGROUP_CPU_LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr(module.os, "cpu_count", lambda: 6)
    assert usable_cores() == 6
    monkeypatch.setattr(module.os, "cpu_count", lambda: None)
    assert usable_cores() == 1
