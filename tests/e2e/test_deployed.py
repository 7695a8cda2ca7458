"""Deployed runs on a real server and real workers: what they make, and that nothing is lost when a process dies."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import LOST_AFTER_SECONDS, SECRET
from tests.e2e.runs import STEPS, TINY, check_one_version, continued_from, tiny_run, until_trained
from tests.e2e.services import POSTGRESQL, processes_of_run, until

CANCEL_SECONDS = 30
OVERHEAD_SECONDS = 6.0  # 0.3 to 1.0 when measured


@pytest.fixture
def parameters(corpus, tmp_path) -> Callable[..., dict[str, Any]]:
    """Return a function that makes the parameters of a tiny run in a storage of the test's own."""

    def make(steps: int = STEPS, **choices: Any) -> dict[str, Any]:
        return tiny_run(corpus, f"storage.root={tmp_path / 'data'}", steps=steps, **choices)

    return make


def test_a_run_from_the_api_trains_on_the_other_pool_and_publishes(stack, parameters, tmp_path):
    run = stack.wait(stack.create_run(parameters(steps=200)))
    assert (run["state_name"], run["name"]) == ("Completed", run["name"]), run["state"]["message"]
    assert run["name"].startswith("default steps=200 seed=1")
    (child,) = stack.children(run["id"])
    assert (child["state_name"], child["work_pool_name"], run["work_pool_name"]) == ("Completed", "gpu", "cpu")
    assert (tmp_path / "data" / "models" / "tiny" / "champion").read_text() == "v1\n"

    shown = stack.artifacts(run["id"])
    rows = json.loads(shown["tiny-metrics"])
    assert {row["metric"] for row in rows} == {
        "loss (nats a token)", "token perplexity", "word perplexity", "bits a byte",
    }  # fmt: skip
    assert "data:image/png;base64," in shown["tiny-model-card"]
    assert stack.artifacts(child["id"])["tiny-training"] == 100
    for run_id, stage in ((run["id"], "publish: "), (child["id"], "train: ")):
        until(lambda: any(line.startswith(stage) for line in stack.logs(run_id)), f"the line of {stage}")  # noqa: B023
    everything = json.dumps([run, child, stack.logs(run["id"]), stack.logs(child["id"]), shown])
    assert SECRET not in everything

    again = stack.wait(stack.create_run(parameters(steps=200)))
    assert (again["state_type"], again["state_name"]) == ("COMPLETED", "Nothing to do")
    assert "those of tiny v1" in again["state"]["message"]
    assert again["total_run_time"] < 30
    assert stack.children(again["id"]) == []


def test_a_flow_takes_little_longer_than_its_stages(stack, parameters, corpus, tmp_path):
    command = [sys.executable, "-m", "flows.train_flow", "--json", "training.max_steps=20", corpus, *TINY]
    for _ in range(2):
        result = json.loads(stack.command(*command, f"storage.root={tmp_path / 'data'}"))
        flow_seconds = stack.run(result["run_id"])["total_run_time"]
        stage_seconds = sum(stage["seconds"] for stage in result["stages"].values())
        assert flow_seconds - stage_seconds < OVERHEAD_SECONDS


def test_new_data_is_trained_on_and_force_trains_without_any(stack, parameters, corpus, tmp_path):
    root = tmp_path / "data"
    assert stack.wait(stack.create_run(parameters(steps=100)))["state_name"] == "Completed"
    train_file = Path(corpus.split("train: ")[1].split(",")[0])
    before = train_file.read_text()
    try:
        train_file.write_text(before + "one more cat\n")
        assert stack.wait(stack.create_run(parameters(steps=100)))["state_name"] == "Completed"
    finally:
        train_file.write_text(before)
    assert sorted(path.name for path in root.glob("models/tiny/v*")) == ["v1", "v2"]
    assert stack.wait(stack.create_run(parameters(steps=100)))["state_name"] == "Nothing to do"
    forced = stack.wait(stack.create_run(parameters(steps=100, force=True)))
    assert forced["state_name"] == "Completed"
    assert len(stack.children(forced["id"])) == 1
    assert len(list(root.glob("checkpoints/*/manifest.json"))) == 3
    assert sorted(path.name for path in root.glob("models/tiny/v*")) == ["v1", "v2"], "the same bytes: no new version"


@pytest.mark.parametrize(
    ("parameters_of_a_mistake", "words"),
    [
        ({"training": {"steps": 0}}, "less than the minimum"),
        ({"training": {"learning_rate": "fast"}}, "learning_rate"),
        ({"config": "no-such-file"}, "no-such-file"),
        ({"run": {"promote": "perhaps"}}, "perhaps"),
        ({"overrides": ["training.max_step=3"]}, "training.max_step=3"),
        ({"training": {"epochs": 1}}, "epochs"),
    ],
)
def test_a_bad_value_is_refused_before_a_run_starts(parameters_of_a_mistake, words, stack):
    answer = stack.request_run(parameters_of_a_mistake)
    assert answer.status_code in (409, 422)
    assert words in answer.text


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


def test_a_killed_training_process_is_continued_by_a_new_run_of_the_same_flow(stack, parameters, tmp_path):
    run_id = stack.create_run(parameters())
    step = until_trained(tmp_path / "data")
    (child,) = stack.children(run_id)
    for process in processes_of_run(child["id"]):
        os.kill(process, signal.SIGKILL)
    assert stack.wait(run_id)["state_name"] == "Completed"
    children = stack.children(run_id)
    assert [child["state_name"] for child in children] == ["Crashed", "Completed"]
    assert 0 < continued_from(stack, run_id)[-1] >= step - 200
    check_one_version(tmp_path / "data")


def test_a_killed_flow_process_leaves_its_training_for_the_next_run_to_join(stack, parameters, tmp_path):
    run_id = stack.create_run(parameters())
    until_trained(tmp_path / "data")
    for process in processes_of_run(run_id):
        os.kill(process, signal.SIGKILL)
    assert stack.wait(run_id)["state_name"] == "Crashed"
    again = stack.create_run(parameters())
    assert stack.wait(again)["state_name"] == "Completed"
    assert stack.children(again) == [], "it joined the training that went on"
    check_one_version(tmp_path / "data")


@pytest.mark.parametrize("pool", ["gpu", "cpu"])
def test_a_killed_worker_interrupts_nothing(pool, stack, parameters, tmp_path):
    run_id = stack.create_run(parameters())
    until_trained(tmp_path / "data")
    stack.processes[f"worker-{pool}"].kill()
    stack.start_worker(pool)
    assert stack.wait(run_id)["state_name"] == "Completed"
    assert continued_from(stack, run_id) == []
    check_one_version(tmp_path / "data")


def test_a_lost_gpu_machine_is_noticed_and_another_one_continues(stack, parameters, tmp_path):
    run_id = stack.create_run(parameters())
    step = until_trained(tmp_path / "data")
    (child,) = stack.children(run_id)
    stack.processes["worker-gpu"].kill_group()
    for process in processes_of_run(child["id"]):
        os.kill(process, signal.SIGKILL)
    stack.start_worker("gpu")
    assert stack.wait(run_id)["state_name"] == "Completed"
    first, second = stack.children(run_id)
    assert first["state"]["message"] == f"no sign of life for {LOST_AFTER_SECONDS} seconds"
    assert second["state_name"] == "Completed"
    assert continued_from(stack, run_id)[-1] >= step - 200
    check_one_version(tmp_path / "data")


def test_a_killed_server_that_is_started_again_interrupts_nothing(stack, parameters, tmp_path):
    run_id = stack.create_run(parameters())
    until_trained(tmp_path / "data")
    stack.processes["server"].kill_group()
    stack.start_server()
    assert stack.wait(run_id)["state_name"] == "Completed"
    assert continued_from(stack, run_id) == []
    check_one_version(tmp_path / "data")


def test_a_cancelled_run_saves_its_training_and_the_next_one_continues_it(stack, parameters, tmp_path):
    run_id = stack.create_run(parameters())
    step = until_trained(tmp_path / "data")
    (child,) = stack.children(run_id)
    training = processes_of_run(child["id"])
    stack.post(f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})
    cancelled = time.monotonic()
    until(lambda: not any(Path(f"/proc/{process}").exists() for process in training), "the training ends")
    assert time.monotonic() - cancelled < CANCEL_SECONDS
    assert stack.wait(run_id)["state_name"] == "Cancelled"
    assert stack.wait(child["id"])["state_name"] == "Cancelled", "and not first Crashed, which would notify"
    newest = max((tmp_path / "data").glob("checkpoints/*/states/step-*")).name
    assert int(newest.removeprefix("step-")) >= step, "the state of the step that it was cancelled in"

    again = stack.create_run(parameters())
    assert stack.wait(again)["state_name"] == "Completed"
    assert continued_from(stack, again) == [int(newest.removeprefix("step-"))]
    check_one_version(tmp_path / "data")


def test_of_two_runs_at_once_one_trains_and_one_version_comes_out(stack, parameters, tmp_path):
    runs = [stack.create_run(parameters()), stack.create_run(parameters())]
    assert sorted(stack.wait(run_id)["state_name"] for run_id in runs) == ["Completed", "Nothing to do"]
    assert sum(len(stack.children(run_id)) for run_id in runs) == 1
    check_one_version(tmp_path / "data")


def test_no_run_is_left_alive(stack):
    """After all of the tests before."""
    until(lambda: not stack.live_runs(), "every run ends", seconds=2 * LOST_AFTER_SECONDS)


@pytest.mark.skipif(POSTGRESQL is None, reason="with a busy SQLite Prefect 3.8.8 acts on an event again")
def test_no_run_is_told_of_twice(webhook):
    """After all of the tests before."""
    runs = [re.search(r"flow-run/([0-9a-f-]{36})", text)[1] for text in webhook.posted]
    assert len(runs) == len(set(runs)) >= 3, "one that failed, processes that were killed"


def test_the_next_monday_is_scheduled(stack):
    scheduled = stack.get("deployments/name/train-flow/scheduled")["id"]
    body = {"deployments": {"id": {"any_": [scheduled]}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 1}
    (run,) = until(lambda: stack.post("flow_runs/filter", body), "the scheduler has run")
    start = datetime.fromisoformat(run["expected_start_time"])
    assert (start.weekday(), start.hour, start.minute, run["state_name"]) == (0, 3, 0, "Scheduled")
    assert start - datetime.now(UTC) < timedelta(days=7)


def test_setting_up_twice_doubles_nothing(stack, tmp_path):
    def there() -> dict[str, list[str]]:
        names = {
            "work_pools": stack.post("work_pools/filter", {}),
            "automations": stack.post("automations/filter", {}),
            "deployments": stack.post("deployments/filter", {}),
            "block_documents": stack.post("block_documents/filter", {}),
        }
        return {kind: sorted(item["name"] for item in items) for kind, items in names.items()}

    before = there()
    stack.set_up(str(tmp_path), "--lost-after", str(LOST_AFTER_SECONDS))
    assert there() == before
    assert before["work_pools"] == ["cpu", "gpu"]
    assert before["deployments"] == ["gpu", "on-demand", "scheduled"]
