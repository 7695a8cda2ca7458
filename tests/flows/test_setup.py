"""Setting a real server up: what is made, once however often it is done, and with no secret in the open."""

import json
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import Posture
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.variables import Variable

from flows.setup import (
    FLOWS,
    LOST_AFTER_SECONDS,
    NOTIFY_VARIABLE,
    RESULTS_BLOCK,
    RESULTS_VARIABLE,
    base_job_template,
    lost_runs,
    main,
    set_up_automation,
    set_up_pool,
)
from textgen.errors import InputError

pytestmark = pytest.mark.usefixtures("prefect_server")
SECRET_URL = "https://127.0.0.1:9/services/not-for-anyone"
LOST, NOTIFIES = "textgen: a run without a heartbeat has crashed", "textgen: a failed or crashed run notifies"


@pytest.fixture(scope="module")
def client(prefect_server) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client
        for automation in ask(client, "automations"):  # they would act on the runs of other tests
            client.delete_automation(UUID(automation["id"]))


@pytest.fixture
def notify(monkeypatch) -> None:
    monkeypatch.setenv(NOTIFY_VARIABLE, SECRET_URL)


def ask(client: SyncPrefectClient, path: str) -> list[dict[str, Any]]:
    return client._client.post(f"/{path}/filter", json={}).raise_for_status().json()


def there(client: SyncPrefectClient) -> dict[str, list[str]]:
    kinds = ("work_pools", "automations", "block_documents", "variables")
    return {kind: sorted(item["name"] for item in ask(client, kind)) for kind in kinds}


def test_twice_makes_what_once_makes(client, notify, tmp_path, capsys):
    for pool in {"cpu", "gpu"} & set(there(client)["work_pools"]):  # of other tests, as pytest-xdist orders them
        client.delete_work_pool(pool)
    assert main(["--storage", str(tmp_path)]) == 0
    assert "work pool cpu: made" in capsys.readouterr().out
    once = there(client)
    assert main(["--storage", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "work pool cpu: is there" in printed
    assert f"automation {LOST!r}: is there" in printed
    assert there(client) == once
    assert {"cpu", "gpu"} <= set(once["work_pools"])
    assert [name for name in once["automations"] if name.startswith("textgen")] == [NOTIFIES, LOST]
    assert RESULTS_BLOCK in once["block_documents"]


def test_a_pool_trains_one_model_at_a_time(client, tmp_path):
    main(["--storage", str(tmp_path)])
    for name in ("cpu", "gpu"):
        pool = client.read_work_pool(name)
        assert (pool.type, pool.concurrency_limit) == ("process", 1)
        assert "env" in pool.base_job_template["variables"]["properties"], "prefect.yaml sets it"


def test_a_pool_keeps_what_its_owner_changed(client, tmp_path):
    main(["--storage", str(tmp_path)])
    client._client.patch("/work_pools/cpu", json={"concurrency_limit": 4}).raise_for_status()
    main(["--storage", str(tmp_path)])
    assert client.read_work_pool("cpu").concurrency_limit == 4
    client._client.patch("/work_pools/cpu", json={"concurrency_limit": 1}).raise_for_status()


def test_a_pool_of_another_kind_is_the_users_mistake(client, tmp_path, capsys):
    main(["--storage", str(tmp_path)])
    assert main(["--storage", str(tmp_path), "--gpu-pool", "docker"]) == 2
    printed = capsys.readouterr().err
    assert printed == "work pool gpu: it is there, for workers of type process, not docker\n"


def test_a_kubernetes_job_asks_for_a_gpu_and_a_choice_of_nodes(client):
    template = base_job_template(client, "kubernetes")
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == "{{ node_selector }}"
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    variables = template["variables"]["properties"]
    assert (variables["gpus"]["default"], variables["node_selector"]["default"]) == (1, {})
    set_up_pool(client, "gpu-kubernetes", "kubernetes")
    set_up_pool(client, "gpu-kubernetes", "kubernetes")
    assert client.read_work_pool("gpu-kubernetes").base_job_template == template
    pod["containers"][0]["envFrom"] = [{"secretRef": {"name": "keys"}}]
    del pod["containers"][0]["resources"]
    variables["gpus"]["default"] = 4
    client.update_work_pool("gpu-kubernetes", WorkPoolUpdate(base_job_template=template))
    set_up_pool(client, "gpu-kubernetes", "kubernetes")
    pod["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "{{ gpus }}"}}
    assert client.read_work_pool("gpu-kubernetes").base_job_template == template


@pytest.mark.parametrize("kind", ["process", "docker"])
def test_other_pools_have_prefects_own_template(kind, client):
    (own,) = [workers[kind] for workers in client.read_worker_metadata().values() if kind in workers]
    assert base_job_template(client, kind) == own["default_base_job_configuration"]


def test_results_are_kept_where_both_pools_reach_them(tmp_path, capsys):
    main(["--storage", str(tmp_path)])
    assert f"{tmp_path}/results" in capsys.readouterr().out
    assert Variable.get(RESULTS_VARIABLE) == f"local-file-system/{RESULTS_BLOCK}"
    main(["--storage", "s3://bucket/textgen/"])
    assert "s3://bucket/textgen/results" in capsys.readouterr().out
    assert Variable.get(RESULTS_VARIABLE) == f"remote-file-system/{RESULTS_BLOCK}"


@pytest.mark.parametrize(
    ("arguments", "url", "words"),
    [
        (["--storage", "file:///data"], "", "storage.root='file:///data'"),
        (["--storage", "nope://bucket/x"], "", "storage.root='nope://bucket/x': Protocol not known"),
        (["--storage", ""], "", "storage.root=''"),
        (["--lost-after", "59"], "", "--lost-after 59: less than two heartbeats"),
        ([], "not-for-anyone", f"{NOTIFY_VARIABLE}: a web address was expected"),
    ],
)
def test_what_no_run_could_use_is_the_users_mistake(arguments, url, words, client, monkeypatch, capsys):
    monkeypatch.setenv(NOTIFY_VARIABLE, url)
    before = there(client)
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(words)
    assert there(client) == before


def test_a_server_that_does_not_answer_is_one_line(tmp_path, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
            assert main(["--storage", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"no Prefect server answers at {url}/: ")


def test_a_run_without_a_heartbeat_is_crashed(client, tmp_path):
    main(["--storage", str(tmp_path), "--lost-after", "95"])
    (automation,) = client.read_automations_by_name(LOST)
    assert automation.enabled
    trigger, (action,) = automation.trigger, automation.actions
    assert trigger.posture == Posture.Proactive
    assert (trigger.after, trigger.within) == ({"prefect.flow-run.heartbeat"}, timedelta(seconds=95))
    assert trigger.for_each == {"prefect.resource.id"}
    assert trigger.match_related.model_dump()["prefect.resource.name"] == FLOWS
    assert isinstance(action, ChangeFlowRunState)
    assert (action.state, action.message) == (StateType.CRASHED, "no sign of life for 95 seconds")
    main(["--storage", str(tmp_path)])
    (automation,) = client.read_automations_by_name(LOST)
    assert automation.trigger.within == timedelta(seconds=LOST_AFTER_SECONDS)


def test_the_flows_that_an_automation_watches_are_ours():
    from flows.train_flow import train_flow
    from flows.train_model import train_model

    assert [train_flow.name, train_model.name] == FLOWS


def test_a_double_of_an_automation_is_removed(client):
    wanted = lost_runs(100)
    for _ in range(3):
        client.create_automation(wanted)
    set_up_automation(client, wanted)
    assert len(client.read_automations_by_name(wanted.name)) == 1


def test_without_a_webhook_nobody_is_told_and_nothing_is_undone(client, notify, tmp_path, monkeypatch, capsys):
    main(["--storage", str(tmp_path)])
    before = there(client)
    monkeypatch.setenv(NOTIFY_VARIABLE, "")
    capsys.readouterr()
    main(["--storage", str(tmp_path)])
    assert f"{NOTIFY_VARIABLE} is not set" in capsys.readouterr().out
    assert there(client) == before


def test_the_address_of_the_webhook_is_nowhere_to_be_read(client, notify, tmp_path, capsys):
    main(["--storage", str(tmp_path)])
    (automation,) = client.read_automations_by_name(NOTIFIES)
    (action,) = automation.actions
    assert isinstance(action, SendNotification)
    assert automation.trigger.expect == {f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "TimedOut")}
    everything = json.dumps([ask(client, kind) for kind in ("automations", "block_documents", "variables")])
    printed = capsys.readouterr()
    assert str(action.block_document_id) in everything
    assert SECRET_URL not in everything + printed.out + printed.err
    assert "not-for-anyone" not in everything


def test_a_kind_of_worker_that_the_server_does_not_know_is_the_users_mistake(client):
    with pytest.raises(InputError, match=r"no-such-kind: the server knows only .*process"):
        base_job_template(client, "no-such-kind")
