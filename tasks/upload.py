"""The task that uploads the champion to a Hub repository, if one is configured. It is no reason for a run to fail."""

import logging
from typing import Any

from prefect import Task, task
from prefect.client.schemas.objects import State, TaskRun

from tasks.redact import redacted
from tasks.stage import NETWORK_RETRY_SECONDS
from textgen.config import Config
from textgen.errors import Failure, PushFailed
from textgen.model.find import bring_champion
from textgen.publishing import upload as uploading
from textgen.publishing.version import PublishedManifest
from textgen.storage import Storage

log = logging.getLogger(__name__)


def can_pass(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Return whether to try a failed upload again."""
    try:
        state.result()
    except PushFailed as error:
        return error.transient
    except Exception:  # every other failure is final, and is reported where the flow reads the result
        return False
    return False


@task(retries=len(NETWORK_RETRY_SECONDS), retry_delay_seconds=NETWORK_RETRY_SECONDS, retry_condition_fn=can_pass)
@redacted()
def upload(config: Config, published: PublishedManifest) -> str:
    """Have the Hub repository hold a published version and return the commit."""
    assert config.publish.hub_repo is not None
    return uploading.upload(published, config.publish.hub_repo, Storage(config.storage)).commit


def upload_champion(config: Config, published: PublishedManifest) -> str | None:
    """Have the Hub hold the champion and return the commit; what fails, the next run tries again.

    The champion may be another version than the `published` one: an earlier run failed to upload it, or somebody
    promoted it or rolled back to it.
    """
    if config.publish.hub_repo is None:
        return None
    home, storage = published.folder.parent, Storage(config.storage)
    try:
        if (champion := bring_champion(home, storage)) is None:
            return None
        storage.bring(home / champion, PublishedManifest)
        return upload(config, PublishedManifest.read(home / champion))
    except Failure as error:
        log.warning("%s@champion is not on the Hub: %s; the next run tries again", published.name, error)
        return None
