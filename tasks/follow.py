"""What a run shows of the training that another run does: how far it is, and where, from its first minute."""

import logging
import time
from typing import cast

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterType
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType
from prefect.client.schemas.sorting import ArtifactSort

from tasks.report import Bar
from textgen.publishing.markdown import inline

log = logging.getLogger(__name__)

LOG_SECONDS = 30.0  # between two lines of the log
RUN_PAGE = "../../runs/flow-run/{id}"  # from every page of the UI that shows an artifact, wherever the UI is served


class Followed:
    """A training in another run, shown in this one. It is never a reason to fail."""

    def __init__(self, client: SyncPrefectClient, name: str) -> None:
        self.client, self.bar = client, Bar(name)
        self._logged_at = -LOG_SECONDS
        self._logged = ""
        self._warned = False

    def look(self, run: FlowRun) -> None:
        """Show how far the run is, as it is now, and log it now and then."""
        try:
            percent, words = self._progress(run)
            self.bar.show(percent, f"[{inline(run.name)}]({RUN_PAGE.format(id=run.id)}): {inline(words)}")
        except Exception as error:  # whatever the server or the way to it does: the training goes on
            if not self._warned:
                log.warning("the progress of the run %s could not be shown: %s", run.name, error)
            self._warned = True
            return
        if words != self._logged and time.monotonic() >= self._logged_at + LOG_SECONDS:
            log.info("%s: %s", run.name, words)
            self._logged, self._logged_at = words, time.monotonic()

    def _progress(self, run: FlowRun) -> tuple[float, str]:
        """Return the percentage and the words of the run's own progress, or what it waits for."""
        if run.start_time is None:
            return 0.0, f"waiting for a worker of the work pool {run.work_pool_name}"
        found = self.client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]), type=ArtifactFilterType(any_=["progress"])
            ),
            sort=ArtifactSort.CREATED_DESC,
            limit=1,
        )
        percent, words = (cast(float, found[0].data), found[0].description or "") if found else (0.0, "starting")
        if run.state_type == StateType.COMPLETED:  # whatever it could send of its end
            return 100.0, words
        return percent, f"{run.state_name} at {words}" if run.state_type in TERMINAL_STATES else words
