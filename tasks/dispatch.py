"""Training on another work pool: start a run of the training deployment, or join one that is live, and wait for it."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.runtime import flow_run as this_flow_run

from tasks.cancel import cancel
from tasks.follow import Followed
from textgen.config import Config
from textgen.errors import Damaged, InputError, TrainingCancelled, TrainingLost, from_text
from textgen.files import content_key
from textgen.storage import Storage
from textgen.text.tokens import TokensManifest
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.handover import bring_training

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
QUIET_SECONDS = 60.0  # before a run that no worker has taken is mentioned
SERVER_PATIENCE_SECONDS = 30 * 60  # without an answer from the server, beyond what its client waits itself

REFUSALS = (httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY)  # of parameters that do not fit its schema

T = TypeVar("T")


def train_elsewhere(config: Config, tokens: TokensManifest, out: Path, storage: Storage) -> CheckpointManifest:
    """Have a run of `compute.gpu_deployment` train in the folder `out` of the shared storage; return its manifest.

    A training that is finished there is returned as it is.

    Raises:
        InputError: there is no such deployment, or its storage is another one.
        TrainingLost: the run failed, crashed or was ended.
        TrainingCancelled: it was cancelled, or took longer than `compute.timeout_seconds`.
    """
    deployment = config.compute.gpu_deployment
    assert deployment is not None
    with suppress(Damaged):
        return CheckpointManifest.read(out)
    storage.push(tokens.folder, tokens)
    parameters = {"config": config.model_dump(mode="json"), "tokens_key": tokens.key, "folder": out.name}
    with get_client(sync_client=True) as client:
        tag = f"training:{out.name}:{content_key(config.storage.root)}"
        run = find_or_start(client, deployment, tag, parameters)
        log.info("training in the run %s of %s", run.name, deployment)
        run = wait(client, run, config.compute.timeout_seconds, Followed(client, config.name).look)
    bring_training(storage, out)
    try:
        return CheckpointManifest.read(out).as_built()  # whatever became of the run after its work was done
    except Damaged as damage:
        raise explain(run, config, damage) from None


def find_or_start(client: SyncPrefectClient, deployment: str, tag: str, parameters: dict[str, Any]) -> FlowRun:
    """Return the live run of this training, or a new one: one for each that has ended before.

    Raises:
        InputError: there is no such deployment, or it is none of ours.
    """
    of_this_training = FlowRunFilter(tags=FlowRunFilterTags(all_=[tag]))
    runs = persist(lambda: client.read_flow_runs(flow_run_filter=of_this_training))
    live = [run for run in runs if run.state_type not in TERMINAL_STATES]
    if live:
        return live[0]
    key = f"{tag}:{len(runs)}"  # of two who start one at the same time, both have the same run

    def start() -> FlowRun:
        tags = [tag, our_tag()]
        run = run_deployment(deployment, parameters=parameters, tags=tags, idempotency_key=key, timeout=0)
        return cast(FlowRun, run)  # a coroutine only where it is called in one

    try:
        return persist(start)
    except ObjectNotFound as error:
        raise InputError(f"compute.gpu_deployment={deployment!r}: the server has no such deployment") from error
    except PrefectHTTPStatusError as error:
        if error.response.status_code not in REFUSALS:
            raise
        raise InputError(f"compute.gpu_deployment={deployment!r}: it takes no training's parameters") from error


def our_tag() -> str:
    """Return the tag of the runs that this flow run started."""
    return f"started-by:{this_flow_run.id}"


def wait(
    client: SyncPrefectClient, run: FlowRun, timeout_seconds: float, look: Callable[[FlowRun], None] = lambda run: None
) -> FlowRun:
    """Return the run as it is when it has ended; where it takes too long, cancel it. `look` is given it as it goes.

    Raises:
        TrainingCancelled: it took longer than `timeout_seconds`.
    """
    started, mentioned = time.monotonic(), False
    while (run := persist(lambda: client.read_flow_run(run.id))).state_type not in TERMINAL_STATES:
        look(run)
        waited = time.monotonic() - started
        if waited > timeout_seconds:
            cancel(client, run.id)
            raise TrainingCancelled(
                f"the run {run.name} was cancelled: compute.timeout_seconds={timeout_seconds:g} have passed"
            )
        if waited > QUIET_SECONDS and run.start_time is None and not mentioned:
            log.warning("no worker of the work pool %s has taken the run %s yet", run.work_pool_name, run.name)
            mentioned = True
        time.sleep(POLL_SECONDS)
    look(run)
    return run


def explain(run: FlowRun, config: Config, damage: Damaged) -> Exception:
    """Return the exception for a run that left no finished training: its own, where its message is for the user."""
    state, deployment = run.state, config.compute.gpu_deployment
    if state is None:
        return TrainingLost(f"the server has no state of the run {run.name} of {deployment}")
    if state.is_completed():
        return InputError(f"{deployment} trained in another storage than storage.root={config.storage.root}: {damage}")
    if state.is_cancelled():
        if our_tag() in run.tags:
            return TrainingCancelled(f"the run {run.name} of {deployment} was cancelled")
        return TrainingLost(f"the run {run.name} of {deployment} was cancelled with the flow run that started it")
    if (error := from_text(state.message or "")) is not None:
        return error
    return TrainingLost(f"the run {run.name} of {deployment} ended {state.name}: {state.message}")


def persist(ask: Callable[[], T]) -> T:
    """Return `ask()`, asked again while the server is down: it may be started again."""
    deadline = time.monotonic() + SERVER_PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except (httpx.TransportError, PrefectHTTPStatusError) as error:
            if isinstance(error, PrefectHTTPStatusError) and not error.response.is_server_error:
                raise
            if time.monotonic() > deadline:
                raise
            log.warning("the Prefect server does not answer (%s); asking again", error)
            time.sleep(POLL_SECONDS)
