"""The energy of a training, on counters made of files and on a stand-in for NVML."""

from types import SimpleNamespace

import pytest
import torch

from textgen.publishing.card import training_in_words
from textgen.training import energy
from textgen.training.energy import EnergyMeter
from textgen.training.train import train

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WRAPS_AT = 262143328850  # of a package that was looked at


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """Return a folder of counters: two packages, and a core of one, which is in its package's figure."""
    for name in ("intel-rapl", "intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
        (tmp_path / name).mkdir()
        if ":" in name:
            (tmp_path / name / "energy_uj").write_text("1000000\n")
            (tmp_path / name / "max_energy_range_uj").write_text(f"{WRAPS_AT}\n")
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    return tmp_path


def test_the_packages_are_added_up_on_top_of_an_earlier_process(powercap):
    joules = {"cpu": 2.0}
    meter = EnergyMeter(joules, CPU, 1)
    (powercap / "intel-rapl:0" / "energy_uj").write_text("4500000\n")
    (powercap / "intel-rapl:1" / "energy_uj").write_text("2000000\n")
    (powercap / "intel-rapl:0:0" / "energy_uj").write_text("3000000\n")
    meter.update()
    assert joules == {"cpu": 6.5}
    meter.update()
    assert joules == {"cpu": 6.5}


def test_a_counter_that_wraps_goes_on(powercap):
    meter = EnergyMeter({}, CPU, 1)
    (powercap / "intel-rapl:0" / "energy_uj").write_text("0\n")
    meter.update()
    assert meter.joules["cpu"] == pytest.approx((WRAPS_AT + 1) / 1e6 - 1)


def test_a_reading_that_fails_is_made_up_for_by_the_next(powercap):
    meter, file = EnergyMeter({}, CPU, 1), powercap / "intel-rapl:0" / "energy_uj"
    file.unlink()
    meter.update()
    assert meter.joules == {"cpu": 0.0}
    file.write_text("2500000\n")
    meter.update()
    assert meter.joules == {"cpu": 1.5}


@pytest.mark.parametrize("unreadable", ["energy_uj", "max_energy_range_uj"])
def test_what_cannot_be_read_is_not_measured(unreadable, powercap):
    for package in powercap.glob("intel-rapl:?"):
        (package / unreadable).unlink()
    meter = EnergyMeter({}, CPU, 1)
    meter.update()
    assert meter.joules == {}


def test_a_host_without_counters_measures_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "none")
    monkeypatch.setattr(energy, "NVML", "libno-such-library.so")
    meter = EnergyMeter({}, CUDA, 1)
    meter.update()
    assert meter.joules == {}


def test_the_gpus_of_the_processes_are_added_up_and_one_without_a_counter_is_left_out(tmp_path, monkeypatch):
    used = {1: 5_000, 2: 70_000}  # millijoules by handle

    class Library:
        def nvmlInit_v2(self) -> int:
            return 0

        def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle) -> int:
            handle._obj.value = int(uuid.removeprefix(b"GPU-"))
            return 0

        def nvmlDeviceGetTotalEnergyConsumption(self, handle, millijoules) -> int:
            if handle.value not in used:
                return 3  # not supported
            millijoules._obj.value = used[handle.value]
            return 0

    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "none")
    monkeypatch.setattr(energy.ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=index + 1))
    meter = EnergyMeter({}, CUDA, 3)
    used.update({1: 6_000, 2: 70_500})
    meter.update()
    assert meter.joules == {"gpu": 1.5}


def test_a_training_and_its_card_give_the_energy(powercap, tokens, make_config, tmp_path):
    file, begun = powercap / "intel-rapl:0" / "energy_uj", []

    def use_two_kilojoules(step: int, figures: dict[str, float]) -> None:
        begun.append(step)
        file.write_text(str(10**6 + 2 * 10**9 * len(begun)))

    config = make_config(training={"log_every": 10, "eval_every": 20})
    checkpoint = train(tokens, config, tmp_path / "out", use_two_kilojoules)
    assert checkpoint.speed.joules == {"cpu": pytest.approx(2000 * len(begun))}
    assert f"Energy: {2 * len(begun)} kJ of its CPUs." in training_in_words(checkpoint)


def test_the_card_says_where_no_energy_could_be_read(checkpoint):
    without = checkpoint.model_copy(update={"speed": checkpoint.speed.model_copy(update={"joules": {}})})
    assert "Energy: its host has no counter that could be read." in training_in_words(without)
