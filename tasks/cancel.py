"""Cancellation: a cancelled run cancels the runs that it started. Ctrl-C cancels a run, the end of a worker does not.

It does not import torch: a worker loads the hook in a process of its own, and trainings are to end at once.
"""

from typing import Any
from uuid import UUID

from prefect import Flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun
from prefect.exceptions import TerminationSignal
from prefect.runtime import deployment as this_deployment
from prefect.runtime import flow_run as this_flow_run
from prefect.states import Cancelled, Cancelling, State

SAVED = "cancelled; what was trained is saved, and the next run continues it"


def cancel_children(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancel the runs that a cancelled flow run started, at once: the server does so half a minute later."""
    with get_client(sync_client=True) as client:
        cancel_started_by(client, flow_run.id)


def cancel_started_by(client: SyncPrefectClient, run_id: UUID) -> None:
    """Cancel the runs that a flow run started and that have not ended."""
    children = FlowRunFilter(
        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run_id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(not_any_=list(TERMINAL_STATES))),
    )
    for child in client.read_flow_runs(flow_run_filter=children):
        cancel(client, child.id)


def ended_by(signal: TerminationSignal) -> State[Any]:
    """Return the state of this flow run, whose process was told to end, if that was because it was cancelled.

    Prefect itself knows only where no training held its signal back until the state was saved.

    Raises:
        TerminationSignal: it was not: the worker or the machine ends.
    """
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(this_flow_run.id)).state
    if state is None or not state.is_cancelling():
        raise signal
    return Cancelled(message=SAVED)


def interrupted(interrupt: KeyboardInterrupt) -> State[Any]:
    """Cancel the runs that this flow run started, and return its state, if Ctrl-C ended the command that runs it.

    Raises:
        KeyboardInterrupt: a worker runs it, and the worker or the machine ends: another one continues.
    """
    if this_deployment.id is not None:
        raise interrupt
    with get_client(sync_client=True) as client:
        cancel_started_by(client, UUID(this_flow_run.id))
    return Cancelled(message=SAVED)


def cancel(client: SyncPrefectClient, run_id: UUID) -> None:
    """Ask the worker of a run to end it; one that no worker has taken ends at once."""
    client.set_flow_run_state(run_id, Cancelling())
