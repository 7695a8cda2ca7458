"""What a run shows of the training that it waits for: how far that is, with a link to the run that trains."""

import logging
import time
from typing import cast

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterType
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType
from prefect.client.schemas.sorting import ArtifactSort

from tasks.report import ProgressArtifact
from textgen.publishing.markdown import inline

log = logging.getLogger(__name__)

LOG_SECONDS = 30.0  # between two lines of the log
RUN_PAGE = "../../runs/flow-run/{id}"  # from every page of the UI that shows an artifact, wherever the UI is served


class Followed:
    """The progress of another run's training, shown in this one. A failure to show it is a warning."""

    def __init__(self, client: SyncPrefectClient, name: str) -> None:
        self.client, self.artifact = client, ProgressArtifact(name)
        self._logged_at = -LOG_SECONDS
        self._logged = ""
        self._warned = False

    def look(self, run: FlowRun) -> None:
        """Show how far the run is, and log it every LOG_SECONDS."""
        try:
            percent, words = self._progress(run)
            self.artifact.show(percent, f"[{inline(run.name)}]({RUN_PAGE.format(id=run.id)}): {inline(words)}")
        except Exception as error:  # whatever the server or the way to it does: the training goes on
            if not self._warned:
                log.warning("the progress of the run %s could not be shown: %s", run.name, error)
            self._warned = True
            return
        if words != self._logged and time.monotonic() >= self._logged_at + LOG_SECONDS:
            log.info("%s: %s", run.name, words)
            self._logged, self._logged_at = words, time.monotonic()

    def _progress(self, run: FlowRun) -> tuple[float, str]:
        """Return the percentage and the text of the run's own progress artifact, or what it waits for."""
        if run.start_time is None:
            return 0.0, f"waiting for a worker of the work pool {run.work_pool_name}"
        found = self.client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]), type=ArtifactFilterType(any_=["progress"])
            ),
            sort=ArtifactSort.CREATED_DESC,
            limit=1,
        )
        if not found:
            ended = run.state_type in TERMINAL_STATES
            return 0.0, f"{run.state_name} before the training began" if ended else "starting"
        percent, words = cast(float, found[0].data), found[0].description or ""
        if run.state_type == StateType.COMPLETED:  # its last update may not have been sent
            return 100.0, words
        return percent, f"{run.state_name} at {words}" if run.state_type in TERMINAL_STATES else words
