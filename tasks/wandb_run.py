"""The W&B run of a training: the stages of a flow run, and the retries of a training, go on in the same one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect.context import FlowRunContext

from tasks import run_page
from tasks.stage import flow_run_id
from tasks.tracker import Tracker, warn
from textgen.config import Config, TrackingConfig
from textgen.publishing.runs import KEY_DIGITS
from textgen.terminal import one_line
from textgen.training.figures import read_log

INIT_TIMEOUT_SECONDS = 30
FINISH_TIMEOUT_SECONDS = 60
_unreachable = False  # the server did not answer this process: the stages after do not ask it again
_kept: dict[str, Tracker] | None = None  # the trackers that `one_run` keeps open, by training


@contextmanager
def one_run() -> Iterator[None]:
    """Have the stages in the block share the run of their training, and end it with the block."""
    global _kept
    kept: dict[str, Tracker] = {}
    _kept = kept
    interrupted = False
    try:
        yield
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        _kept = None
        for tracker in kept.values():
            tracker.close(interrupted)


@contextmanager
def track(config: Config, folder: Path, **facts: Any) -> Iterator[Tracker]:
    """Yield the tracker of the training in `folder`. Its run ends with the block, or with `one_run` around it.

    Args:
        config: The configuration. The run's page shows it, and the `facts` of the training with it.
        folder: The training folder; the run's id is its name, so that a training that is continued stays one run.
        facts: Such as the number of parameters.
    """
    kept = {} if _kept is None else _kept
    tracker = kept.get(folder.name) or _tracker(config, folder, facts)
    kept[folder.name] = tracker
    tracker.failed = True  # until it has gone well
    try:
        yield tracker
        tracker.failed = False
    finally:
        if kept is not _kept:
            tracker.close()


def _tracker(config: Config, folder: Path, facts: dict[str, Any]) -> Tracker:
    if config.tracking.mode == "disabled":
        return Tracker(None)
    name, described = run_name(config, folder), {**run_page.described(config), **facts}
    if (flow_run := flow_run_id()) is not None:
        described["flow_run"] = flow_run
    tokens_per_step = config.training.sequences_per_step * config.data.seq_length
    return Tracker(lambda: _open(config, folder.name, name, described), read_log(folder), tokens_per_step)


def _open(config: Config, id: str, name: str, described: dict[str, Any]) -> Any:
    """Open a run, offline where W&B refuses. Later stages do not ask a server again that did not answer."""
    global _unreachable
    import wandb

    def init(mode: Any) -> Any:
        return wandb.init(mode=mode, config=described, **run_options(config.tracking, config.root, id, config.name))

    mode = "offline" if _unreachable else "as it was set"
    try:
        if not _unreachable:
            mode = choose_mode(config.tracking)
        run = init(mode)
    except Exception as error:  # of the server, of the client, of a setting in the environment
        if mode == "offline":
            raise
        _unreachable = _unreachable or mode == "online"
        wandb.teardown()  # the failed run still holds its id
        run = init("offline")
        warn(f"{one_line(error)}; recording offline")
    if not run.resumed:  # else it has them, and perhaps those of the version that was published
        run.name, run.tags = name, tuple(run_page.tags_of(config))
    for axis in run_page.AXES:
        run.define_metric(axis, hidden=True)  # it gets no chart
    for section in run_page.SECTIONS:
        run.define_metric(f"{section}/*", step_metric=run_page.AXES[0])
    run.define_metric("validation/loss_nats", step_metric=run_page.AXES[0], summary="min")
    return run


def is_unreachable() -> bool:
    """Return whether the server did not answer this process."""
    return _unreachable


def choose_mode(tracking: TrackingConfig) -> str:
    """Return W&B's mode: `auto` is WANDB_MODE if that is set (wandb checks it), else online with a key."""
    if tracking.mode != "auto":
        return tracking.mode
    return os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")


def has_key() -> bool:
    import wandb
    from requests.utils import get_netrc_auth

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    return get_netrc_auth(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url) is not None


def run_name(config: Config, folder: Path) -> str:
    """Return the name of the flow run, by which Prefect's pages and W&B's are matched; outside one, the training's."""
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        return context.flow_run.name
    return f"{config.name} {folder.name[:KEY_DIGITS]}"


def run_options(tracking: TrackingConfig, root: Path, id: str, group: str | None) -> dict[str, Any]:
    """Return what the run of a training is opened with, whatever is recorded."""
    import wandb

    settings = wandb.Settings(
        console="off", silent=True, init_timeout=INIT_TIMEOUT_SECONDS, finish_timeout=FINISH_TIMEOUT_SECONDS,
        reinit="create_new",
    )  # fmt: skip
    return {
        "project": tracking.project,
        "entity": tracking.entity,
        "id": id,  # the training's: a retry goes on in the same run
        "resume": "allow",
        "group": group,
        "job_type": "train",
        "dir": root,
        "settings": settings,
    }
