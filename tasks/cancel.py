"""Cancellation: passed on to the runs that a run started, and told from a worker that ends.

Without torch: a worker loads the hook in a process of its own, and the runs that cost most are to end at once.
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
from prefect.runtime import flow_run as this_flow_run
from prefect.states import Cancelled, Cancelling, State


def cancel_children(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancel the runs that a cancelled flow run started, at once: the server does so half a minute later."""
    children = FlowRunFilter(
        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run.id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(not_any_=list(TERMINAL_STATES))),
    )
    with get_client(sync_client=True) as client:
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
    return Cancelled(message="cancelled; what was trained is saved, and the next run continues it")


def cancel(client: SyncPrefectClient, run_id: UUID) -> None:
    """Ask the worker of a run to end it; one that no worker has taken ends at once."""
    client.set_flow_run_state(run_id, Cancelling())
