"""The task that compares new text with that of the version in use, before a training."""

import logging

from prefect import task

from textgen.config import Config
from textgen.publishing.drift import VERDICTS, Drift, changes_in_words, measure_drift
from textgen.storage import Storage
from textgen.text.corpus import RawManifest

log = logging.getLogger(__name__)


@task
def drift(config: Config, raw: RawManifest) -> Drift | None:
    """Compare the text with the champion's and return the verdict; None where there is nothing new to compare."""
    found = measure_drift(raw, config, Storage(config.storage))
    if found is not None:
        log.info("%s", in_words(found))
    return found


def in_words(found: Drift) -> str:
    """Return the verdict in a line."""
    because = f": {'; '.join(found.reasons)}" if found.reasons else ""
    return f"{VERDICTS[found.verdict]} {found.champion}{because}{changes_in_words(found)}"
