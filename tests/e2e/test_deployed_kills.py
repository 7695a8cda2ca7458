"""Deployed runs whose processes are killed or cancelled, and whose machine is lost: each is continued, and told of."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import SECRET
from tests.e2e.runs import (
    CHECKPOINT_EVERY,
    STEPS,
    check_one_version,
    continued_from,
    joined,
    until_child_trains,
    until_trained,
)
from tests.e2e.services import kill, processes_of_run, until
from tests.waiting import PATIENCE_SECONDS, held

LOST_AFTER_SECONDS = 95  # three heartbeats of 30 seconds, the shortest that Prefect sends
pytestmark = pytest.mark.slow  # a run is two processes that import torch, and workers look for it every two seconds


@pytest.fixture
def checkpoints(tmp_path) -> Path:
    """Return the folder of the trainings of the test's storage."""
    return tmp_path / "data" / "checkpoints"


def test_a_failed_run_is_told_once_and_without_its_secret(stack, corpus, webhook):
    parameters = {"config": "default", "overrides": [corpus, f"data.files.train=nowhere/{SECRET}"]}
    run = stack.wait(stack.create_run(parameters))
    assert run["state_name"] == "Failed"
    assert "no file matches" in run["state"]["message"]
    told = until(lambda: [text for text in webhook.posted if run["id"] in text], "the webhook is told")
    assert f"textgen: train-flow {run['name']} is Failed" in told[0]
    assert "no file matches" in told[0]
    for shown in (run["name"], run["state"]["message"], *told, *stack.logs(run["id"])):
        assert SECRET not in shown


def test_a_killed_training_process_is_continued_by_a_new_run_of_the_same_flow(
    stack, parameters, checkpoints, webhook, tmp_path
):
    with held(checkpoints):
        run_id = stack.create_run(parameters())
        processes = until_child_trains(stack, run_id)
        step = until_trained(tmp_path / "data")
        kill(processes)
    assert stack.wait(run_id)["state_name"] == "Completed"
    children = stack.children(run_id)
    assert [child["state_name"] for child in children] == ["Crashed", "Completed"]
    until(lambda: children[0]["id"] in webhook.runs, "the webhook is told of the crash")
    assert 0 < continued_from(stack, run_id)[-1] >= step - 2 * CHECKPOINT_EVERY
    check_one_version(tmp_path / "data")


def test_a_killed_flow_process_leaves_its_training_for_the_next_run_to_join(
    stack, parameters, checkpoints, webhook, tmp_path
):
    with held(checkpoints):
        run_id = stack.create_run(parameters())
        processes = until(lambda: processes_of_run(run_id), "the run starts")
        until_trained(tmp_path / "data")
        kill(processes)
        assert stack.wait(run_id)["state_name"] == "Crashed"
        until(lambda: run_id in webhook.runs, "the webhook is told of the crash")
        again = stack.create_run(parameters())
        until(lambda: joined(stack, again), "the run waits for a training")
    assert stack.wait(again)["state_name"] == "Completed"
    assert stack.children(again) == [], "it joined the training that went on"
    check_one_version(tmp_path / "data")


def test_killed_workers_and_a_killed_server_that_are_started_again_interrupt_nothing(
    stack, parameters, checkpoints, tmp_path
):
    with held(checkpoints):
        run_id = stack.create_run(parameters())
        until_trained(tmp_path / "data")
        for pool in ("gpu", "cpu"):
            stack.processes[f"worker-{pool}"].kill()
            stack.start_worker(pool)
        stack.processes["server"].kill_group()
        stack.start_server()
    assert stack.wait(run_id)["state_name"] == "Completed"
    assert continued_from(stack, run_id) == []
    check_one_version(tmp_path / "data")


def test_a_cancelled_run_saves_its_training_and_the_next_one_continues_it(stack, parameters, checkpoints, tmp_path):
    with held(checkpoints):
        run_id = stack.create_run(parameters())
        training = until_child_trains(stack, run_id)
        step = until_trained(tmp_path / "data")
        (child,) = stack.children(run_id)
        stack.post(f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})
        until(lambda: not any(Path(f"/proc/{process}").exists() for process in training), "the training ends")
        assert stack.wait(run_id)["state_name"] == "Cancelled"
        assert stack.wait(child["id"])["state_name"] == "Cancelled", "and not first Crashed, which would notify"
    saved = int(max(checkpoints.glob("*/states/step-*")).name.removeprefix("step-"))
    assert step <= saved < STEPS, "the state of the step that it was cancelled in"
    stopped = f"stopping at step {saved}; its state is saved"
    until(lambda: stopped in stack.logs(child["id"]), "it says that it left by itself: no worker had to kill it")

    again = stack.create_run(parameters())
    assert stack.wait(again)["state_name"] == "Completed"
    assert continued_from(stack, again) == [saved]
    check_one_version(tmp_path / "data")


@pytest.fixture
def silence_is_noticed(stack) -> Iterator[None]:
    """Have the server take a silent run for lost after LOST_AFTER_SECONDS; other tests give a busy machine longer."""
    stack.set_lost_after(LOST_AFTER_SECONDS)
    yield
    stack.set_lost_after(PATIENCE_SECONDS)


@pytest.mark.usefixtures("silence_is_noticed")
def test_a_lost_gpu_machine_is_noticed_and_another_one_continues(stack, parameters, checkpoints, tmp_path):
    with held(checkpoints):
        run_id = stack.create_run(parameters())
        processes = until_child_trains(stack, run_id)
        step = until_trained(tmp_path / "data")
        stack.processes["worker-gpu"].kill_group()
        kill(processes)
        stack.start_worker("gpu")
    assert stack.wait(run_id)["state_name"] == "Completed"
    first, second = stack.children(run_id)
    assert first["state"]["message"] == f"no sign of life for {LOST_AFTER_SECONDS} seconds"
    assert second["state_name"] == "Completed"
    assert continued_from(stack, run_id)[-1] >= step - 2 * CHECKPOINT_EVERY
    check_one_version(tmp_path / "data")
