"""A training on another machine: its states are in the remote root while it runs, and it is continued from there."""

import logging
import threading
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import textgen.training.handover
import textgen.training.train
from tests.trainings import Interruption, ignore, interrupt_at, refuse
from tests.waiting import until
from textgen.config import Config, StorageConfig
from textgen.model.pretrained import WEIGHTS_FILE
from textgen.storage import Storage
from textgen.text.tokens import TokensManifest
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.figures import LOG_FILE, OnMetrics, read_log
from textgen.training.folder import KEY_FILE, STATES_FOLDER, Origin
from textgen.training.handover import bring_training, mirrored
from textgen.training.state import StateManifest, TrainingState
from textgen.training.train import train


@pytest.fixture(autouse=True)
def look_often(monkeypatch) -> None:
    monkeypatch.setattr(textgen.training.handover, "POLL_SECONDS", 0.01)


@pytest.fixture(scope="module")
def config(make_config) -> Config:
    """Return a training with states of steps 4, 8, … of which one is kept."""
    return make_config(training={"log_every": 1, "checkpoint_every": 4, "eval_every": 100, "keep_checkpoints": 1})


def folder(storage: Storage) -> Path:
    return storage.local / "checkpoints" / "k"


def remote_files(storage: Storage) -> set[str]:
    """Return the files of the training that are in the remote root."""
    _, base = fsspec.url_to_fs(storage.root)
    home = f"{base}/checkpoints/k/"
    names = list(MemoryFileSystem.store)  # at once: a push may be adding to it
    return {name.removeprefix(home) for name in names if name.startswith(home)}


def remote_states(storage: Storage) -> list[str]:
    return sorted({name.split("/")[1] for name in remote_files(storage) if name.startswith(STATES_FOLDER)})


def train_here(storage: Storage, tokens: TokensManifest, config: Config, on_metrics: OnMetrics) -> CheckpointManifest:
    with mirrored(storage, folder(storage)):
        return train(tokens, config, folder(storage), on_metrics)


def test_states_and_log_go_there_while_a_training_runs_and_old_ones_leave(tokens, config, here):
    seen: dict[int, list[str]] = {}

    def look(step: int, figures: dict[str, float]) -> None:
        if step in (5, 9) and step not in seen:
            until(lambda: remote_states(here) == [f"step-{step - 1:08d}"], "the newest state is there, alone")
            seen[step] = remote_states(here)

    train_here(here, tokens, config, look)
    assert seen == {5: ["step-00000004"], 9: ["step-00000008"]}
    assert remote_states(here) == ["step-00000020"]
    assert {KEY_FILE, Origin.FILE} <= remote_files(here)
    _, base = fsspec.url_to_fs(here.root)
    assert MemoryFileSystem().cat_file(f"{base}/checkpoints/k/{LOG_FILE}") == (folder(here) / LOG_FILE).read_bytes()


def test_another_machine_continues_from_the_newest_state_to_the_same_bytes(
    tokens, config, here, there, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    with pytest.raises(Interruption):
        train_here(here, tokens, config, interrupt_at(15))
    bring_training(there, folder(there))
    assert "step-00000012 was brought from" in caplog.text
    assert max(int(line["step"]) for line in read_log(folder(there))) >= 12
    manifest = train_here(there, tokens, config, ignore)
    assert "continuing from step 12" in caplog.text
    assert remote_states(here) == ["step-00000020"]
    undisturbed = train(tokens, config, tmp_path / "undisturbed", ignore)
    assert manifest.weights_sha256 == undisturbed.weights_sha256
    assert [line["step"] for line in read_log(folder(there))] == [
        line["step"] for line in read_log(tmp_path / "undisturbed")
    ]


def test_a_machine_that_is_further_than_the_root_keeps_its_own_state(tokens, config, here, there):
    for storage, last in ((there, 6), (here, 15)):
        with pytest.raises(Interruption):
            train(tokens, config, folder(storage), interrupt_at(last))
    with mirrored(there, folder(there)):
        pass
    assert remote_states(there) == ["step-00000004"]
    bring_training(here, folder(here))
    assert [state.name for state in (folder(here) / STATES_FOLDER).iterdir()] == ["step-00000012"]


def test_a_damaged_state_there_is_set_aside_and_the_one_before_it_is_brought(tokens, make_config, here, there):
    config = make_config(training={"checkpoint_every": 4, "eval_every": 100, "keep_checkpoints": 2})
    with pytest.raises(Interruption):
        train_here(here, tokens, config, interrupt_at(10))
    for state in (folder(here) / STATES_FOLDER).iterdir():
        here.push(state, StateManifest.parse(state))
    assert remote_states(here) == ["step-00000004", "step-00000008"]
    _, base = fsspec.url_to_fs(here.root)
    MemoryFileSystem().pipe_file(f"{base}/checkpoints/k/{STATES_FOLDER}/step-00000008/{WEIGHTS_FILE}", b"no weights")
    bring_training(there, folder(there))
    assert [state.name for state in (folder(there) / STATES_FOLDER).glob("step-*")] == ["step-00000004"]
    assert remote_states(there) == ["step-00000004", "step-00000008.damaged-1"]


def test_a_finished_training_comes_whole_and_is_not_done_again(tokens, config, here, there):
    made = train_here(here, tokens, config, ignore)
    here.push(folder(here), made)
    bring_training(there, folder(there))
    assert CheckpointManifest.read(folder(there)).content() == made.content()
    assert not (folder(there) / STATES_FOLDER).exists()
    assert train(tokens, config, folder(there), refuse).content() == made.content()


def test_a_machine_that_came_less_far_leaves_what_another_one_finished(tokens, config, here, there):
    """It pushed the log and the state that it had left: those of the finished training were gone."""
    with pytest.raises(Interruption):
        train_here(here, tokens, config, interrupt_at(6))
    bring_training(there, folder(there))
    finished = train_here(there, tokens, config, ignore)
    there.push(folder(there), finished)
    log, files = read_log(folder(there)), remote_files(there)
    bring_training(here, folder(here))
    assert not train_here(here, tokens, config, refuse).built
    assert (read_log(folder(here)), remote_files(here)) == (log, files)
    _, base = fsspec.url_to_fs(here.root)
    assert MemoryFileSystem().cat_file(f"{base}/checkpoints/k/{LOG_FILE}") == (folder(there) / LOG_FILE).read_bytes()


def test_nothing_there_brings_nothing(here):
    bring_training(here, folder(here))
    assert not folder(here).exists()


def test_a_state_that_could_not_be_pushed_is_a_warning_and_the_next_one_comes(
    tokens, config, here, monkeypatch, caplog
):
    put_file = MemoryFileSystem.put_file

    def refuse_before_step_12(self, source: str, target: str, **options) -> None:
        if Path(source).parent.name < "step-00000012":
            raise ConnectionError("the cable was pulled")
        put_file(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", refuse_before_step_12)

    def wait_for_a_warning(step: int, figures: dict[str, float]) -> None:
        if step == 6:
            until(lambda: "was not pushed" in caplog.text, "a warning")

    assert train_here(here, tokens, config, wait_for_a_warning).steps == 20
    assert f"the state step-00000004 was not pushed: storage.root={here.root}: ConnectionError" in caplog.text
    assert remote_states(here) == ["step-00000020"]


def test_a_state_that_is_deleted_here_after_the_last_push_is_deleted_there_too(tokens, config, here, monkeypatch):
    save_state, push, pushed = textgen.training.train.save_state, textgen.training.handover._push, []

    def watched(storage: Storage, out: Path, state: Path) -> bool:
        went_well = push(storage, out, state)
        pushed.append(state.name)
        return went_well

    def delete_after_the_push(out: Path, key: str, state: TrainingState, keep: int) -> None:
        save_state(out, key, state, keep=100)
        until(lambda: f"step-{state.progress.step:08d}" in pushed, "the push of this state has looked at what is here")
        save_state(out, key, state, keep)

    monkeypatch.setattr(textgen.training.handover, "_push", watched)
    monkeypatch.setattr(textgen.training.train, "save_state", delete_after_the_push)
    train_here(here, tokens, config, ignore)
    assert remote_states(here) == ["step-00000020"]


def test_what_is_left_of_a_push_that_did_not_come_to_its_end_is_deleted_there(tokens, config, here):
    _, base = fsspec.url_to_fs(here.root)
    MemoryFileSystem().pipe_file(f"{base}/checkpoints/k/{STATES_FOLDER}/step-00000003/{WEIGHTS_FILE}", b"a part")
    train_here(here, tokens, config, ignore)
    assert remote_states(here) == ["step-00000020"]


@pytest.mark.parametrize("is_remote", [False, True])
def test_only_a_remote_root_starts_a_thread(is_remote, here, tmp_path):
    storage = here if is_remote else Storage(StorageConfig(root=str(tmp_path)))
    with mirrored(storage, folder(storage)):
        assert any(thread.name == "training-states" for thread in threading.enumerate()) == is_remote
