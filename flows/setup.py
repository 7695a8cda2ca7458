"""What a Prefect server needs before a deployment: pools, result storage, automations. `python -m flows.setup`

Each thing is made if no thing of its name is there; else what is ours in it is brought up to date. Run twice, nothing
doubles, and what somebody else put into a work pool stays.
"""

from flows.prefect_settings import check_settings

if __name__ == "__main__":
    check_settings()

import argparse
import copy
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture, ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect.variables import Variable

from textgen.config import StorageConfig, parse_config
from textgen.errors import Failure, InputError, carry_out
from textgen.storage import Storage
from textgen.terminal import say

RUNS_AT_ONCE = 1  # in a work pool
RESULTS_BLOCK = "textgen-results"
RESULTS_VARIABLE = "textgen_results"  # read by prefect.yaml
NOTIFICATION_BLOCK = "textgen-notifications"
NOTIFY_VARIABLE = "TEXTGEN_NOTIFY_URL"  # a secret: it goes into a block, which the server encrypts
FLOWS = ["train-flow", "train-model"]
LOST_AFTER_SECONDS = 300  # five heartbeats of prefect.yaml's deployments: a server may be away for four minutes
SHORTEST_LOSS_SECONDS = 60  # two of the shortest heartbeats that Prefect has


def main(arguments: Sequence[str] | None = None) -> int:
    """Set the server up and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows.setup", description=__doc__)
    parser.add_argument("--storage", default=StorageConfig().root, help="storage.root of the runs: a folder or a URL")
    parser.add_argument("--gpu-pool", choices=["process", "docker", "kubernetes"], default="process")
    parser.add_argument(
        "--lost-after", type=int, default=LOST_AFTER_SECONDS, metavar="SECONDS",
        help="without a heartbeat, after which a run counts as crashed",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    return carry_out(lambda: set_up(options.storage, options.gpu_pool, options.lost_after))


def set_up(root: str, gpu_pool: str, lost_after: int) -> None:
    """Make what a server needs, for runs in the storage `root`, which count as crashed after so many seconds.

    Raises:
        InputError: the storage, the pool, the seconds or the webhook's address is none that could be used.
        Failure: no server answers.
    """
    storage, notify_url = check_storage(root), check_notify_url()
    if lost_after < SHORTEST_LOSS_SECONDS:
        raise InputError(f"--lost-after {lost_after}: less than two heartbeats, {SHORTEST_LOSS_SECONDS}")
    with get_client(sync_client=True) as client:
        if (silence := client.api_healthcheck()) is not None:
            raise Failure(f"no Prefect server answers at {client.api_url}: {silence}; `prefect server start`")
        set_up_pool(client, "cpu", "process")
        set_up_pool(client, "gpu", gpu_pool)
        set_up_results(storage)
        set_up_automation(client, lost_runs(lost_after))
        set_up_notification(client, notify_url)


def check_storage(root: str) -> StorageConfig:
    """Return the storage with that root.

    Raises:
        InputError: it is none that a run could have.
    """
    config = parse_config({"storage": {"root": root}}).storage
    Storage(config)
    return config


def check_notify_url() -> str | None:
    """Return the webhook in TEXTGEN_NOTIFY_URL, if it is set.

    Raises:
        InputError: it is no web address.
    """
    url = os.environ.get(NOTIFY_VARIABLE)
    if url and not url.startswith(("http://", "https://")):
        raise InputError(f"{NOTIFY_VARIABLE}: a web address was expected, http:// or https://")
    return url or None


def set_up_pool(client: SyncPrefectClient, name: str, kind: str) -> None:
    """Have a work pool of that kind, for one run at a time.

    Raises:
        InputError: it is there and is of another kind.
    """
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        template = base_job_template(client, kind)
        client.create_work_pool(
            WorkPoolCreate(name=name, type=kind, base_job_template=template, concurrency_limit=RUNS_AT_ONCE)
        )
        say(f"work pool {name}: made")
        return
    if pool.type != kind:
        raise InputError(f"work pool {name}: it is there, for workers of type {pool.type}, not {kind}")
    if kind == "kubernetes":
        template = copy.deepcopy(pool.base_job_template)
        ask_for_gpus(template)
        client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
    say(f"work pool {name}: is there")


def base_job_template(client: SyncPrefectClient, kind: str) -> dict[str, Any]:
    """Return what a job of a pool is made from: Prefect's own, and on Kubernetes with a GPU and a choice of nodes.

    Raises:
        InputError: the server knows no such kind of worker.
    """
    known = {name: worker for workers in client.read_worker_metadata().values() for name, worker in workers.items()}
    if kind not in known:
        raise InputError(f"work pool of type {kind}: the server knows only {', '.join(sorted(known))}")
    template = copy.deepcopy(known[kind]["default_base_job_configuration"])
    if kind == "kubernetes":
        ask_for_gpus(template)
    return template


def ask_for_gpus(template: dict[str, Any]) -> None:
    """Have the jobs of a Kubernetes template ask for GPUs and for nodes; the rest of it stays as it is."""
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    pod["nodeSelector"] = "{{ node_selector }}"
    container = pod["containers"][0]
    container.setdefault("resources", {}).setdefault("limits", {})["nvidia.com/gpu"] = "{{ gpus }}"
    variables = {
        "gpus": {"title": "GPUs", "type": "integer", "default": 1, "minimum": 1},
        "node_selector": {
            "title": "Node selector", "type": "object", "default": {},
            "description": "labels of the nodes that may run it, as {cloud.google.com/gke-accelerator: nvidia-l4}",
        },
    }  # fmt: skip
    properties = template["variables"]["properties"]
    properties |= {name: variable for name, variable in variables.items() if name not in properties}


def set_up_results(storage: StorageConfig) -> None:
    """Have the block that says where flows keep their results, as JSON, and the variable that says what kind it is."""
    block: RemoteFileSystem | LocalFileSystem
    if storage.is_remote:
        block = RemoteFileSystem(basepath=f"{storage.root.rstrip('/')}/results")
    else:
        block = LocalFileSystem(basepath=str(storage.local.resolve() / "results"))
    block.save(RESULTS_BLOCK, overwrite=True)
    Variable.set(RESULTS_VARIABLE, f"{block.get_block_type_slug()}/{RESULTS_BLOCK}", overwrite=True)
    say(f"result storage {RESULTS_BLOCK}: {block.basepath}")


def set_up_automation(client: SyncPrefectClient, wanted: AutomationCore) -> None:
    """Have an automation of that name, as it is wanted, and no other one of it."""
    there = client.read_automations_by_name(wanted.name)
    if there:
        client.update_automation(there[0].id, wanted)
    else:
        client.create_automation(wanted)
    for double in there[1:]:
        client.delete_automation(double.id)
    say(f"automation {wanted.name!r}: {'is there' if there else 'made'}")


def on_runs(name: str, description: str, action: ActionTypes, **trigger: Any) -> AutomationCore:
    """Return an automation that acts on events of the runs of our flows."""
    return AutomationCore(
        name=name,
        description=description,
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": FLOWS}),
            for_each={"prefect.resource.id"},
            **trigger,
        ),
        actions=[action],
    )


def lost_runs(seconds: int) -> AutomationCore:
    """Return the automation for runs whose process or machine is gone, which would be Running for ever."""
    message = f"no sign of life for {seconds} seconds"
    return on_runs(
        "textgen: a run without a heartbeat has crashed",
        f"After {seconds} seconds without one; the next run continues its training.",
        ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message),
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.*"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=seconds),
    )


def set_up_notification(client: SyncPrefectClient, url: str | None) -> None:
    """Have failed and crashed runs reported to a webhook, if there is one."""
    if url is None:
        say(f"{NOTIFY_VARIABLE} is not set: who is told of failed runs stays as it was")
        return
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    block = CustomWebhookNotificationBlock(
        name="textgen",
        url="{{url}}",
        json_data={"text": "{{subject}}\n{{body}}"},  # as Slack, Mattermost and Teams take it
        secrets={"url": url},
    )
    block_id = block.save(NOTIFICATION_BLOCK, overwrite=True)
    action = SendNotification(
        block_document_id=block_id,
        subject="textgen: {{ flow.name }} {{ flow_run.name }} is {{ flow_run.state.name }}",
        body="{{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
    )
    wanted = on_runs(
        "textgen: a failed or crashed run notifies",
        "A message to the webhook of the block textgen-notifications.",
        action,
        expect={f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "TimedOut")},
        posture=Posture.Reactive,
        threshold=1,
    )
    set_up_automation(client, wanted)


if __name__ == "__main__":
    sys.exit(main())
