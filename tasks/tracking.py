"""Weights & Biases: the record of a run. The only module that imports wandb, and never a reason for a run to fail."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.context import FlowRunContext

from textgen.config import Config, TrackingConfig

log = logging.getLogger(__name__)

INIT_TIMEOUT_SECONDS = 30
_unreachable = False  # the server did not answer this process: the stages after do not wait for it again


class Tracker:
    """A W&B run that is opened when the first figure comes, so that a stage that does nothing leaves no run behind."""

    def __init__(self, config: Config, key: str, job_type: str) -> None:
        self.config, self.key, self.job_type = config, key, job_type
        self._run: Any = None

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Record figures of a training step."""
        if self.config.tracking.mode != "disabled":
            self.run.log(figures, step=step)

    def summarize(self, figures: dict[str, float | None]) -> None:
        """Record figures of the whole run."""
        if self.config.tracking.mode != "disabled":
            self.run.summary.update({name: value for name, value in figures.items() if value is not None})

    @property
    def url(self) -> str | None:
        """Return the address of the run on the server, None where it is recorded offline or not at all."""
        return self._run.url if self._run is not None else None

    @property
    def run(self) -> Any:
        if self._run is None:
            self._run = self._open()
            self._run.define_metric("train/tokens")
            self._run.define_metric("train/*", step_metric="train/tokens")
            self._run.define_metric("validation/loss_nats", summary="min")
        return self._run

    def _open(self) -> Any:
        global _unreachable
        import wandb
        from wandb.errors import CommError, UsageError

        options = {
            "project": self.config.tracking.project,
            "entity": self.config.tracking.entity,
            "id": self.key,  # the training's: a retry goes on in the same run
            "resume": "allow",
            "group": flow_run_id(),
            "job_type": self.job_type,
            "config": self.config.model_dump(mode="json"),
            "dir": self.config.root,
            "settings": wandb.Settings(console="off", silent=True, init_timeout=INIT_TIMEOUT_SECONDS),
        }
        mode = "offline" if _unreachable else choose_mode(self.config.tracking)
        try:
            return wandb.init(mode=mode, **options)
        except (CommError, UsageError) as error:
            if mode == "offline":
                raise
            log.warning("Weights & Biases: %s; recording offline", " ".join(str(error).split()))
            _unreachable = True
            wandb.teardown()  # the failed run still holds its id
            return wandb.init(mode="offline", **options)

    def close(self, failed: bool) -> None:
        if self._run is not None:
            self._run.finish(exit_code=int(failed))


@contextmanager
def track(config: Config, key: str, job_type: str) -> Iterator[Tracker]:
    """Yield the tracker of one stage of the training `key`."""
    tracker = Tracker(config, key, job_type)
    try:
        yield tracker
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close(failed=False)


def choose_mode(tracking: TrackingConfig) -> str:
    """Return W&B's mode: `auto` is WANDB_MODE if that is set, else online with a key and offline without."""
    if tracking.mode != "auto":
        return tracking.mode
    return os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")


def _has_key() -> bool:
    import wandb
    from requests.utils import get_netrc_auth

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    return get_netrc_auth(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url) is not None


def flow_run_id() -> str | None:
    """Return the id of the flow run that this is a part of, None outside one."""
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context is not None and context.flow_run is not None else None
