"""Weights & Biases: recorded offline without an account, and never a reason for a run to fail."""

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.util import get_core_path

from tasks import tracker, tracking, wandb_run
from tasks.run_page import described, evaluation_figures, training_figures
from tasks.tracker import Tracker
from tasks.tracking import main, model_artifact, track_champion, track_model
from tasks.wandb_run import choose_mode, one_run, track
from tests.waiting import PATIENCE_SECONDS
from textgen.config import Config, StorageConfig, TrackingConfig, parse_config
from textgen.files import sha256_file
from textgen.model.pretrained import WEIGHTS_FILE
from textgen.publishing.version import LINEAGE_FILE
from textgen.training.figures import read_log


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch):
    """Give each test a home without an account, and a W&B that reads its environment anew."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(wandb_run, "_unreachable", False)
    monkeypatch.setattr(tracker, "_warned", set())
    monkeypatch.setattr(tracker, "CLOSE_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setenv("WANDB_DISABLE_WEAVE", "true")  # it greets the openai client, which other tests load
    monkeypatch.setenv("WANDB__SERVICE_WAIT", str(PATIENCE_SECONDS))  # for its own process to start
    yield
    for thread in threading.enumerate():
        if thread.name == "wandb":  # what it says belongs to this test
            thread.join(PATIENCE_SECONDS)
    wandb.teardown()


def config(root: Path, mode: str = "auto") -> Config:
    return parse_config({"tracking": {"mode": mode}, "storage": {"root": str(root)}})


def recorded_in(root: Path) -> Path:
    """Return the folder of the one offline run under `root`, after W&B's own process, which writes it, has ended."""
    wandb.teardown()
    (run,) = (root / "wandb").glob("offline-run-*")
    return run


def inspect(root: Path, *options: str) -> str:
    """Return what W&B's own tool, which `wandb leet` starts, shows of the one offline run under `root` as JSON."""
    run = recorded_in(root)
    (file,) = run.glob("*.wandb")
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", *options]
    return subprocess.run([*command, "--run-file", file, run.parent], capture_output=True, text=True, check=True).stdout


def recorded(root: Path) -> str:
    """Return the summary of the one offline run under `root` as JSON."""
    return inspect(root, "--summary")


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of ours."""
    return [
        one.getMessage() for one in caplog.records if one.name in ("tasks.tracking", "tasks.tracker", "tasks.wandb_run")
    ]


def test_without_a_key_the_run_is_recorded_offline(tmp_path, capsys):
    """Nothing is said in the terminal: each look at the address of an offline run was a warning, every ten steps."""
    with track(config(tmp_path), Path("k1")) as run:
        run.log(10, {"train/loss_nats": 3.5, "train/tokens": 640.0})
        run.log(20, {"train/loss_nats": 2.25, "train/tokens": 1280.0})
        run.summarize({"test/token_perplexity": 17.125, "test/bits_per_byte": None})
    assert (run.url, capsys.readouterr().err) == (None, "")
    summary = recorded(tmp_path)
    assert "2.25" in summary
    assert "17.125" in summary


def test_a_stage_that_records_nothing_opens_no_run(tmp_path):
    with track(config(tmp_path), Path("k2")):
        pass
    assert not (tmp_path / "wandb").exists()


def test_disabled_records_nothing(tmp_path):
    with track(config(tmp_path, "disabled"), Path("k3")) as run:
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
        monkeypatch.setattr(wandb_run, "_unreachable", False)
        yield


def test_an_unreachable_server_means_offline_with_one_warning(tmp_path, unreachable, caplog):
    with track(config(tmp_path / "train", "online"), Path("k4")) as run:
        run.log(1, {"train/loss_nats": 1.5})
    with track(config(tmp_path / "evaluate", "online"), Path("k4")) as run:
        run.summarize({"test/loss_nats": 2.5})
    (warning,) = warnings_in(caplog)
    assert "offline" in warning
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
    with pytest.raises(RuntimeError), track(config(tmp_path), Path("k5")) as run:
        run.log(1, {"train/loss_nats": 4.5})
        raise RuntimeError
    assert "4.5" in recorded(tmp_path)


def test_the_stages_of_a_training_are_one_run_with_everything_on_its_page(publication, tmp_path):
    one = publication
    settings = one.config.model_copy(update={"storage": StorageConfig(root=str(tmp_path))})
    folder, checkpoint = one.checkpoint.folder, one.checkpoint
    with one_run():
        with track(settings, folder, parameters=checkpoint.parameters, steps=checkpoint.steps) as run:
            run.summarize(training_figures(checkpoint))
        with track(settings, folder) as run:
            run.summarize(evaluation_figures(one.metrics))
        track_model(settings, one.published, checkpoint)
    page = json.loads(recorded(tmp_path))
    summary, decision = page["summary"], one.published.decision
    assert (page["name"], page["state"]) == (f"textgen v1: textgen {folder.name[:8]}", "finished")
    assert page["notes"].startswith("v1: better by ")
    assert (page["config"]["parameters"], page["config"]["steps"]) == (checkpoint.parameters, checkpoint.steps)
    assert summary["train/loss_nats"] == read_log(folder)[-2]["train/loss_nats"]
    assert summary["validation/loss_nats"]["min"] == pytest.approx(min(point.loss_nats for point in checkpoint.curve))
    assert summary["test/final_loss_nats"] == pytest.approx(one.metrics.splits["test"].loss_nats)
    assert summary["decision/difference"] == pytest.approx(decision.difference)
    assert (summary["decision/opponent"], summary["decision/promoted"]) == ("unigram", True)
    assert (summary["samples"]["nrows"], summary["decision/both_models"]["nrows"]) == (3, 6)
    assert summary["decision/checks"]["nrows"] == len(decision.guards)
    assert {name for name, value in summary.items() if isinstance(value, dict) and value.get("format") == "png"} == {
        "plots/data", "plots/training",
    }  # fmt: skip
    records = [json.loads(line) for line in inspect(tmp_path).splitlines()]
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [(row["step"], row["tokens"]) for row in rows if "validation/loss_nats" in row] == [
        (point.step, point.tokens) for point in checkpoint.curve
    ]
    axes = {record["metric"].get("glob_name"): record["metric"].get("step_metric")
            for record in records if record["type"] == "metric"}  # fmt: skip
    assert {axes[f"{section}/*"] for section in ("train", "validation", "speed")} == {"tokens"}
    tags = [record["run"].get("tags") for record in records if record["type"] == "run"][-1]
    assert tags == ["textgen", "files", "bpe tokenizer", "v1", "promoted"]


class FakeRun:
    """A W&B run that notes what is sent to it; `failing` names the call that the server refuses."""

    def __init__(self, failing: str | None = None) -> None:
        self.failing = failing
        self.options: dict[str, Any] = {}
        self.used: list[wandb.Artifact] = []
        self.logged: list[tuple[wandb.Artifact, list[str]]] = []
        self.linked: list[tuple[str, list[str]]] = []
        self.finished = 0
        self.starting_step = 0
        self.history: list[tuple[int | None, dict[str, Any]]] = []
        self.summary: dict[str, Any] = {}
        self.url, self.offline, self.tags = "https://wandb.example/run", False, ()
        self.name, self.resumed = "", False

    def init(self, **options: Any) -> "FakeRun":
        self.options, self.offline = options, options["mode"] == "offline"
        return self

    def define_metric(self, name: str, **options: Any) -> None:
        """Take what only the real client is asked about."""

    def log(self, row: dict[str, Any], step: int | None = None) -> None:
        self.history.append((step, row))

    def finish(self, exit_code: int) -> None:
        self.finished += 1

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
    track_model(config, published, publication.checkpoint)
    assert (server.options["mode"], server.options["id"], server.options["job_type"]) == (
        "online", publication.checkpoint.key, "train",
    )  # fmt: skip
    assert [artifact.name for artifact in server.used] == [
        f"raw-{publication.raw.key}", f"tokens-{publication.tokens.key}",
    ]  # fmt: skip
    ((artifact, aliases),) = server.logged
    assert (artifact.type, artifact.name, aliases) == ("model", "textgen", ["textgen-v1", "champion"])
    sent = {name: entry.size for name, entry in artifact.manifest.entries.items()}
    assert sent == {path.name: path.stat().st_size for path in published.folder.iterdir()}
    weights = config.root / "models" / "textgen" / "v1" / WEIGHTS_FILE
    assert {name: entry.ref for name, entry in artifact.manifest.entries.items() if entry.ref is not None} == {
        WEIGHTS_FILE: weights.as_uri()
    }, "gigabytes stay where they are"
    assert artifact.metadata["decision"]["promoted"] is True
    assert artifact.metadata["weights_sha256"] == sha256_file(weights)
    assert artifact.metadata["tokens_key"] == publication.tokens.key
    assert server.used[0].metadata["source"] == publication.raw.source
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
    with track(config(tmp_path), Path("k6")) as run:
        aliases = ["textgen-v1", "champion"]
        run.do(lambda there: there.log_artifact(tracking.input_artifact("raw", lineage["raw"])))
        run.do(lambda there: there.log_artifact(model_artifact(publication.published, lineage), aliases=aliases))
    data = b"".join(path.read_bytes() for path in recorded_in(tmp_path).glob("*.wandb"))
    assert b"champion" in data
    assert publication.raw.key.encode() in data


def test_a_version_that_is_not_the_champion_is_sent_without_that_alias_and_not_linked(model, server, publication):
    config, published, _ = model
    (config.root / "models" / "textgen" / "champion").write_text("v2\n")
    track_model(config, published, publication.checkpoint)
    assert server.logged[0][1] == ["textgen-v1"]
    assert server.linked == []


def test_after_a_rollback_the_alias_and_the_link_go_to_the_champion_once(model, server, publication):
    config, published, pending = model
    home = config.root / "models" / "textgen"
    shutil.copytree(home / "v1", home / "v2")
    published.model_copy(update={"version": "v2"}).write(home / "v2")
    (home / "champion").write_text("v2\n")
    newest = type(published).read(home / "v2")
    track_model(config, newest, publication.checkpoint)
    track_champion(config, newest)
    assert [aliases for _, aliases in server.logged] == [["textgen-v2", "champion"]]
    (home / "champion").write_text("v1\n")
    for _ in range(2):
        track_champion(config, newest)
    assert [aliases for _, aliases in server.logged[1:]] == [["textgen-v1", "champion"]]
    assert server.options["id"] == publication.checkpoint.key
    assert server.linked[1:] == [("wandb-registry-model/textgen", ["textgen-v1", "champion"])]
    assert not pending.exists()


def test_a_champion_that_waits_for_replay_is_not_sent_twice(model, server, publication):
    config, published, pending = model
    server.failing = "wait"
    newest = type(published).read(config.root / "models" / "textgen" / "v1")
    track_model(config, newest, publication.checkpoint)
    server.failing = None
    track_champion(config, newest)
    assert (len(server.logged), pending.exists()) == (1, True)


def test_without_a_registry_nothing_is_linked(model, server, publication):
    config, published, pending = model
    config = config.model_copy(update={"tracking": TrackingConfig(registry=None)})
    track_model(config, published, publication.checkpoint)
    assert (server.linked, pending.exists()) == ([], False)


def test_offline_a_version_waits_for_replay_which_sends_it_once(model, server, monkeypatch, capsys, publication):
    config, published, pending = model
    monkeypatch.delenv("WANDB_API_KEY")
    track_model(config, published, publication.checkpoint)
    assert pending.exists()
    assert main(["replay", "--root", str(config.root)]) == 2
    assert "WANDB_API_KEY" in capsys.readouterr().err
    assert server.logged == []
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert main(["replay", "--root", str(config.root)]) == 0
    assert (len(server.used), len(server.logged), len(server.linked)) == (2, 1, 1)
    assert not pending.exists()
    assert main(["replay", "--root", str(config.root)]) == 0
    assert capsys.readouterr().err.endswith("nothing is to be sent\n")
    assert len(server.logged) == 1


def test_a_root_that_is_not_there_is_a_mistake(tmp_path, capsys):
    assert main(["replay", "--root", str(tmp_path / "no")]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_versions_that_wait_are_sent_in_the_order_they_were_published(model, server, monkeypatch, publication):
    config, published, _ = model
    home = config.root / "models" / "textgen"
    monkeypatch.setenv("WANDB_MODE", "offline")
    for version in ("v10", "v2"):
        shutil.copytree(home / "v1", home / version)
        published.model_copy(update={"version": version}).write(home / version)
        track_model(config, type(published).read(home / version), publication.checkpoint)
    assert main(["replay", "--root", str(config.root)]) == 0
    assert [aliases for _, aliases in server.logged] == [["textgen-v2"], ["textgen-v10"]]


@pytest.mark.parametrize("call", ["use_artifact", "log_artifact", "wait", "link_artifact"])
def test_a_refusal_at_any_call_is_one_warning_and_leaves_the_version_to_replay(
    model, server, caplog, capsys, call, publication
):
    config, published, pending = model
    server.failing = call
    track_model(config, published, publication.checkpoint)
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "the server says no" in warning
    assert "replay" in warning
    assert main(["replay", "--root", str(config.root)]) == 1
    assert "textgen-v1: the server says no" in capsys.readouterr().err
    assert pending.exists()
    server.failing = None
    assert main(["replay", "--root", str(config.root)]) == 0
    assert not pending.exists()


def test_a_server_that_is_not_there_leaves_the_version_to_replay(model, unreachable, caplog, publication):
    config, published, pending = model
    track_model(config, published, publication.checkpoint)
    assert pending.exists()
    assert "replay" in caplog.text
    assert "x" * 40 not in caplog.text


def test_a_version_that_was_deleted_is_no_longer_pending(model, server, monkeypatch, capsys, publication):
    config, published, pending = model
    monkeypatch.setenv("WANDB_MODE", "offline")
    track_model(config, published, publication.checkpoint)
    shutil.rmtree(config.root / "models" / "textgen" / "v1")
    assert main(["replay", "--root", str(config.root)]) == 0
    assert "no longer there" in capsys.readouterr().err
    assert (server.logged, pending.exists()) == ([], False)


def test_disabled_leaves_nothing_pending(model, server, publication):
    config, published, pending = model
    config = config.model_copy(update={"tracking": TrackingConfig(mode="disabled")})
    track_model(config, published, publication.checkpoint)
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
    for _ in range(2):
        with track(settings, Path("k5")) as run:
            run.log(1, {"train/loss_nats": 1.0})
            run.log(2, {"train/loss_nats": 1.0})
            run.summarize({"test/loss_nats": 1.0})
    warnings = warnings_in(caplog)
    assert len(warnings) <= 1
    assert all("\n" not in warning and len(warning) < 500 for warning in warnings)


def test_a_folder_that_cannot_be_written_is_one_warning_at_most(tmp_path, caplog):
    (tmp_path / "wandb").write_text("a file where the folder would be")
    with track(config(tmp_path, "offline"), Path("k6")) as run:
        run.log(1, {"train/loss_nats": 1.0})
        run.summarize({"test/loss_nats": 1.0})
    assert len(warnings_in(caplog)) <= 1


def test_a_version_that_cannot_be_noted_is_a_warning(model, caplog, publication):
    config, published, pending = model
    pending.parent.parent.mkdir(exist_ok=True)
    pending.parent.write_text("a file where the folder would be")
    track_model(config, published, publication.checkpoint)
    track_champion(config, published)
    assert "is not recorded" in caplog.text


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ({"dataset_name": "python-docs"}, {"dataset_name"}),
        ({"dataset_name": "a/b", "revision": "main"}, {"dataset_name", "revision"}),
        ({"path": "there", "dataset_name": "a/b"}, {"path", "document"}),
        ({"files": "notes"}, {"files", "text_column", "document", "validation_fraction", "test_fraction"}),
        ({"files": {"train": "a", "validation": "b", "test": "c"}}, {"files", "text_column", "document"}),
    ],
    ids=["embedded", "hub", "folder", "files", "given splits"],
)
def test_the_configuration_there_names_the_source_that_was_used_and_no_null(data, names):
    shown = described(parse_config({"data": data}))
    assert set(shown["data"]) == names | {"end_of_document", "max_overlap", "seq_length"}
    assert None not in [value for section in shown.values() if isinstance(section, dict) for value in section.values()]
    assert not shown.keys() & {"storage", "tracking", "compute"}


def test_a_run_that_goes_on_is_sent_what_the_server_lacks_in_order_of_its_steps(checkpoint):
    server = FakeRun()
    server.starting_step = 11  # it was ended at step 10, perhaps before its validation
    lines = read_log(checkpoint.folder)
    earlier = [line for line in lines if line["step"] <= 15]
    run = Tracker(lambda: server, earlier, tokens_per_step=128)
    for line in lines[len(earlier) :]:
        run.log(int(line["step"]), line)
    run.close()
    places = [place for place, _ in server.history]
    assert places == sorted(places)
    assert min(places) == 11
    assert [row["tokens"] for _, row in server.history] == [128 * line["step"] for line in lines if line["step"] >= 10]
    validated = [row["tokens"] for _, row in server.history if "validation/loss_nats" in row]
    assert validated == [128 * 10, 128 * 15, 128 * 20]


def test_a_run_that_goes_on_keeps_its_name_and_its_tags(tmp_path, server):
    with track(config(tmp_path, "online"), Path("k9")) as run:
        run.summarize({"test/final_loss_nats": 1.0})
    assert (server.name, server.tags[0]) == ("textgen k9", "textgen")
    server.name, server.resumed = "textgen v3: default", True
    with track(config(tmp_path, "online"), Path("k9")) as run:
        run.summarize({"test/final_loss_nats": 1.0})
    assert server.name == "textgen v3: default"


def test_a_server_that_never_answers_holds_nothing_up(tmp_path, monkeypatch, caplog):
    answered = threading.Event()
    monkeypatch.setattr(wandb, "init", lambda **options: answered.wait(PATIENCE_SECONDS))
    monkeypatch.setattr(tracker, "CLOSE_SECONDS", 0.01)
    with track(config(tmp_path, "offline"), Path("k8")) as run:
        run.log(1, {"train/loss_nats": 1.0})
    answered.set()
    (warning,) = warnings_in(caplog)
    assert "goes on without it" in warning


def test_ctrl_c_does_not_wait_long_for_a_server_that_never_answers(tmp_path, monkeypatch, caplog):
    answered = threading.Event()
    monkeypatch.setattr(wandb, "init", lambda **options: answered.wait(PATIENCE_SECONDS))
    monkeypatch.setattr(tracker, "LEAVE_SECONDS", 0.01)
    with pytest.raises(KeyboardInterrupt), one_run(), track(config(tmp_path, "offline"), Path("k9")) as run:
        run.log(1, {"train/loss_nats": 1.0})
        raise KeyboardInterrupt
    answered.set()
    (warning,) = warnings_in(caplog)
    assert "after 0.01 seconds" in warning
