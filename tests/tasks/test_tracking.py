"""Weights & Biases: recorded offline without an account, and never a reason for a run to fail."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from tasks import tracking
from tasks.tracking import choose_mode, main, model_artifact, track, track_champion, track_model
from tests.waiting import PATIENCE_SECONDS
from textgen.config import Config, TrackingConfig, parse_config
from textgen.publishing.version import LINEAGE_FILE


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch):
    """Give each test a home without an account, and a W&B that reads its environment anew."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tracking, "_unreachable", False)
    monkeypatch.setattr(tracking, "_warned", set())
    monkeypatch.setenv("WANDB__SERVICE_WAIT", str(PATIENCE_SECONDS))  # for its own process to start
    yield
    wandb.teardown()


def config(root: Path, mode: str = "auto") -> Config:
    return parse_config({"tracking": {"mode": mode}, "storage": {"root": str(root)}})


def recorded_in(root: Path) -> Path:
    """Return the folder of the one offline run under `root`, after W&B's own process, which writes it, has ended."""
    wandb.teardown()
    (run,) = (root / "wandb").glob("offline-run-*")
    return run


def recorded(root: Path) -> str:
    """Return the summary of the one offline run under `root` as JSON, read by W&B's own tool."""
    run = recorded_in(root)
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--summary", "--json", str(run)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_without_a_key_the_run_is_recorded_offline_and_in_silence(tmp_path, capfd):
    with track(config(tmp_path), "k1", "train") as run:
        run.log(10, {"train/loss_nats": 3.5, "train/tokens": 640.0})
        run.log(20, {"train/loss_nats": 2.25, "train/tokens": 1280.0})
        run.summarize({"test/token_perplexity": 17.125, "test/bits_per_byte": None})
        assert run.url is None
    assert capfd.readouterr() == ("", "")
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


@pytest.fixture
def unreachable(monkeypatch) -> Iterator[None]:
    """Have a key, and no server where W&B looks for it: the client asks for a second, until its time is over."""
    init = wandb.init

    def ask_for_a_second(mode: str, settings: wandb.Settings, **options: Any) -> Any:
        seconds = 1 if mode == "online" else PATIENCE_SECONDS
        return init(mode=mode, settings=settings.model_copy(update={"init_timeout": seconds}), **options)

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
        monkeypatch.setattr(wandb, "init", ask_for_a_second)
        monkeypatch.setattr(tracking, "_unreachable", False)
        yield


def test_an_unreachable_server_means_offline_with_one_warning(tmp_path, unreachable, caplog):
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


class FakeRun:
    """A W&B run that notes what is sent to it; `failing` names the call that the server refuses."""

    def __init__(self, failing: str | None = None) -> None:
        self.failing = failing
        self.options: dict[str, Any] = {}
        self.used: list[wandb.Artifact] = []
        self.logged: list[tuple[wandb.Artifact, list[str]]] = []
        self.linked: list[tuple[str, list[str]]] = []
        self.finished = 0

    def init(self, **options: Any) -> "FakeRun":
        self.options = options
        return self

    def __enter__(self) -> "FakeRun":
        return self

    def __exit__(self, *_: object) -> None:
        self.finished += 1

    def use_artifact(self, artifact: wandb.Artifact) -> None:
        self.refuse("use_artifact")
        self.used.append(artifact)

    def log_artifact(self, artifact: wandb.Artifact, aliases: list[str]) -> "FakeRun":
        self.refuse("log_artifact")
        self.logged.append((artifact, aliases))
        return self

    def wait(self, timeout: int) -> None:
        self.refuse("wait")

    def link_artifact(self, artifact: "FakeRun", target: str, aliases: list[str]) -> None:
        self.refuse("link_artifact")
        self.linked.append((target, aliases))

    def refuse(self, call: str) -> None:
        if self.failing == call:
            raise wandb.errors.CommError("the server\nsays no")


@pytest.fixture
def server(monkeypatch) -> FakeRun:
    """Have a key, and in place of the server a run that notes what it is sent."""
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    fake = FakeRun()
    monkeypatch.setattr(wandb, "init", fake.init)
    return fake


@pytest.fixture
def model(publication, tmp_path):
    """Return the configuration of a root with a published model, that model, and its pending file."""
    shutil.copytree(publication.config.root, tmp_path / "data")
    storage = publication.config.storage.model_copy(update={"root": str(tmp_path / "data")})
    config = publication.config.model_copy(update={"storage": storage})
    return config, publication.published, tmp_path / "data" / "wandb" / "pending" / "textgen-v1.json"


def test_a_version_is_sent_with_its_inputs_its_aliases_and_its_place_in_the_registry(model, server, publication):
    config, published, pending = model
    track_model(config, published, "training-key")
    assert (server.options["mode"], server.options["id"], server.options["job_type"]) == (
        "online", "training-key", "publish",
    )  # fmt: skip
    assert [artifact.name for artifact in server.used] == [
        f"raw-{publication.raw.key}", f"tokens-{publication.tokens.key}",
    ]  # fmt: skip
    ((artifact, aliases),) = server.logged
    assert (artifact.type, artifact.name, aliases) == ("model", "textgen", ["textgen-v1", "champion"])
    sent = {name: entry.size for name, entry in artifact.manifest.entries.items()}
    assert sent == {path.name: path.stat().st_size for path in published.folder.iterdir()}
    assert artifact.metadata["decision"]["promoted"] is True
    assert server.linked == [("wandb-registry-model/textgen", aliases)]
    assert server.finished == 1
    assert not pending.exists()


def test_the_same_inputs_give_the_same_digest_and_others_another(publication):
    lineage = json.loads((publication.published.folder / LINEAGE_FILE).read_text())
    first, again = (tracking.input_artifact("raw", lineage["raw"]) for _ in range(2))
    changed = {**lineage["raw"], "sha256": {**lineage["raw"]["sha256"], "train.parquet": "0" * 64}}
    assert first.digest == again.digest != tracking.input_artifact("raw", changed).digest


def test_the_client_takes_the_artifacts_as_they_are_described(publication, tmp_path):
    lineage = json.loads((publication.published.folder / LINEAGE_FILE).read_text())
    with track(config(tmp_path), "k6", "publish") as run:
        run.run.log_artifact(tracking.input_artifact("raw", lineage["raw"]))
        run.run.log_artifact(model_artifact(publication.published, lineage), aliases=["textgen-v1", "champion"])
    data = b"".join(path.read_bytes() for path in recorded_in(tmp_path).glob("*.wandb"))
    assert b"champion" in data
    assert publication.raw.key.encode() in data


def test_a_version_that_is_not_the_champion_is_sent_without_that_alias_and_not_linked(model, server):
    config, published, _ = model
    (config.root / "models" / "textgen" / "champion").write_text("v2\n")
    track_model(config, published, "training-key")
    assert server.logged[0][1] == ["textgen-v1"]
    assert server.linked == []


def test_after_a_rollback_the_alias_and_the_link_go_to_the_champion_once(model, server, publication):
    config, published, pending = model
    home = config.root / "models" / "textgen"
    shutil.copytree(home / "v1", home / "v2")
    published.model_copy(update={"version": "v2"}).write(home / "v2")
    (home / "champion").write_text("v2\n")
    newest = type(published).read(home / "v2")
    track_model(config, newest, "training-key")
    track_champion(config, newest)
    assert [aliases for _, aliases in server.logged] == [["textgen-v2", "champion"]]
    (home / "champion").write_text("v1\n")
    for _ in range(2):
        track_champion(config, newest)
    assert [aliases for _, aliases in server.logged[1:]] == [["textgen-v1", "champion"]]
    assert server.options["id"] == publication.checkpoint.key
    assert server.linked[1:] == [("wandb-registry-model/textgen", ["textgen-v1", "champion"])]
    assert not pending.exists()


def test_a_champion_that_waits_for_replay_is_not_sent_twice(model, server):
    config, published, pending = model
    server.failing = "wait"
    newest = type(published).read(config.root / "models" / "textgen" / "v1")
    track_model(config, newest, "training-key")
    server.failing = None
    track_champion(config, newest)
    assert (len(server.logged), pending.exists()) == (1, True)


def test_without_a_registry_nothing_is_linked(model, server):
    config, published, pending = model
    config = config.model_copy(update={"tracking": TrackingConfig(registry=None)})
    track_model(config, published, "training-key")
    assert (server.linked, pending.exists()) == ([], False)


def test_offline_a_version_waits_for_replay_which_sends_it_once(model, server, monkeypatch, capsys):
    config, published, pending = model
    monkeypatch.delenv("WANDB_API_KEY")
    track_model(config, published, "training-key")
    assert pending.exists()
    assert main(["replay", "--root", str(config.root)]) == 2
    assert "WANDB_API_KEY" in capsys.readouterr().err
    assert server.logged == []
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert main(["replay", "--root", str(config.root)]) == 0
    assert (len(server.used), len(server.logged), len(server.linked)) == (2, 1, 1)
    assert not pending.exists()
    assert main(["replay", "--root", str(config.root)]) == 0
    assert len(server.logged) == 1


@pytest.mark.parametrize("call", ["use_artifact", "log_artifact", "wait", "link_artifact"])
def test_a_refusal_at_any_call_is_one_warning_and_leaves_the_version_to_replay(model, server, caplog, capsys, call):
    config, published, pending = model
    server.failing = call
    track_model(config, published, "training-key")
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "the server says no" in warning
    assert "replay" in warning
    assert main(["replay", "--root", str(config.root)]) == 1
    assert "textgen-v1: the server says no" in capsys.readouterr().err
    assert pending.exists()
    server.failing = None
    assert main(["replay", "--root", str(config.root)]) == 0
    assert not pending.exists()


def test_a_server_that_is_not_there_leaves_the_version_to_replay(model, unreachable, caplog):
    config, published, pending = model
    track_model(config, published, "training-key")
    assert pending.exists()
    assert "replay" in caplog.text
    assert "x" * 40 not in caplog.text


def test_a_version_that_was_deleted_is_no_longer_pending(model, server, monkeypatch, capsys):
    config, published, pending = model
    monkeypatch.setenv("WANDB_MODE", "offline")
    track_model(config, published, "training-key")
    shutil.rmtree(config.root / "models" / "textgen" / "v1")
    assert main(["replay", "--root", str(config.root)]) == 0
    assert "no longer there" in capsys.readouterr().err
    assert (server.logged, pending.exists()) == ([], False)


def test_disabled_leaves_nothing_pending(model, server):
    config, published, pending = model
    track_model(config.model_copy(update={"tracking": TrackingConfig(mode="disabled")}), published, "training-key")
    assert (server.logged, pending.exists()) == ([], False)


@pytest.mark.parametrize(
    ("setting", "environment"),
    [
        ({}, {"WANDB_MODE": "nonsense"}),
        ({"mode": "offline", "project": "a/b"}, {}),
        ({"mode": "offline", "project": "x" * 10_000}, {}),
        ({"mode": "offline", "entity": "a/../b\x1b[31m"}, {}),
        ({"mode": "online"}, {"WANDB_BASE_URL": "nonsense", "WANDB_API_KEY": "x" * 40}),
        ({}, {"WANDB_BASE_URL": "nonsense", "WANDB_API_KEY": "x" * 40}),
        ({"mode": "offline"}, {"WANDB_SILENT": "nonsense", "WANDB_INIT_TIMEOUT": "soon"}),
    ],
    ids=str,
)
def test_what_wandb_refuses_is_one_warning_at_most(setting, environment, tmp_path, monkeypatch, caplog):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = parse_config({"tracking": setting, "storage": {"root": str(tmp_path)}})
    for job in ("train", "evaluate"):
        with track(settings, "k5", job) as run:
            run.log(1, {"train/loss_nats": 1.0})
            run.log(2, {"train/loss_nats": 1.0})
            run.summarize({"test/loss_nats": 1.0})
    warnings = [record for record in caplog.records if record.name == "tasks.tracking"]
    assert len(warnings) <= 1
    assert all("\n" not in record.getMessage() and len(record.getMessage()) < 500 for record in warnings)


def test_a_folder_that_cannot_be_written_is_one_warning_at_most(tmp_path, caplog):
    (tmp_path / "wandb").write_text("a file where the folder would be")
    with track(config(tmp_path, "offline"), "k6", "train") as run:
        run.log(1, {"train/loss_nats": 1.0})
        run.summarize({"test/loss_nats": 1.0})
    assert len([record for record in caplog.records if record.name == "tasks.tracking"]) <= 1


def test_a_version_that_cannot_be_noted_is_a_warning(model, caplog):
    config, published, pending = model
    pending.parent.parent.mkdir(exist_ok=True)
    pending.parent.write_text("a file where the folder would be")
    track_model(config, published, "k7")
    track_champion(config, published)
    assert "is not recorded" in caplog.text
