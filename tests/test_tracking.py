"""Weights & Biases: recorded offline without an account, and never a reason for a run to fail."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import wandb

from tasks import tracking
from tasks.tracking import choose_mode, track
from textgen.config import Config, TrackingConfig, parse_config


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch):
    """Give each test a home without an account, and a W&B that reads its environment anew."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    yield
    wandb.teardown()


def config(root: Path, mode: str = "auto") -> Config:
    return parse_config({"tracking": {"mode": mode}, "storage": {"root": str(root)}})


def recorded(root: Path) -> str:
    """Return the summary of the one offline run under `root` as JSON, read by W&B's own tool."""
    (run,) = (root / "wandb").glob("offline-run-*")
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--summary", "--json", str(run)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_without_a_key_the_run_is_recorded_offline(tmp_path):
    with track(config(tmp_path), "k1", "train") as run:
        run.log(10, {"train/loss_nats": 3.5, "train/tokens": 640.0})
        run.log(20, {"train/loss_nats": 2.25, "train/tokens": 1280.0})
        run.summarize({"test/token_perplexity": 17.125, "test/bits_per_byte": None})
    summary = recorded(tmp_path)
    assert "2.25" in summary
    assert "17.125" in summary


def test_a_stage_that_records_nothing_opens_no_run(tmp_path):
    with track(config(tmp_path), "k2", "train"):
        pass
    assert not (tmp_path / "wandb").exists()


def test_disabled_records_nothing(tmp_path):
    with track(config(tmp_path, "disabled"), "k3", "train") as run:
        run.log(1, {"train/loss_nats": 1.0})
        run.summarize({"test/loss_nats": 1.0})
    assert not (tmp_path / "wandb").exists()


def test_an_unreachable_server_means_offline_with_one_warning(tmp_path, monkeypatch, caplog):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
        monkeypatch.setattr(tracking, "INIT_TIMEOUT_SECONDS", 2)
        monkeypatch.setattr(tracking, "_unreachable", False)
        with track(config(tmp_path / "train", "online"), "k4", "train") as run:
            run.log(1, {"train/loss_nats": 1.5})
        with track(config(tmp_path / "evaluate", "online"), "k4", "evaluate") as run:
            run.summarize({"test/loss_nats": 2.5})
    warnings = [record for record in caplog.records if record.name == "tasks.tracking"]
    assert len(warnings) == 1
    assert "offline" in warnings[0].message
    assert "1.5" in recorded(tmp_path / "train")
    assert "2.5" in recorded(tmp_path / "evaluate")
    assert "x" * 40 not in caplog.text


def test_an_explicit_mode_wins_over_a_key(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert choose_mode(TrackingConfig()) == "online"
    assert choose_mode(TrackingConfig(mode="offline")) == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert choose_mode(TrackingConfig()) == "disabled"


def test_a_key_in_the_environment_or_in_netrc_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    assert choose_mode(TrackingConfig()) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert choose_mode(TrackingConfig()) == "online"
    monkeypatch.delenv("WANDB_API_KEY")
    netrc = tmp_path / "home" / "netrc"
    netrc.parent.mkdir()
    netrc.write_text("machine wandb.example\n  login user\n  password " + "x" * 40 + "\n")
    assert choose_mode(TrackingConfig()) == "online"


def test_an_exception_in_a_stage_closes_the_run(tmp_path):
    with pytest.raises(RuntimeError), track(config(tmp_path), "k5", "train") as run:
        run.log(1, {"train/loss_nats": 4.5})
        raise RuntimeError
    assert "4.5" in recorded(tmp_path)
