"""The task that freezes the corpus."""

from tasks.stage import NETWORK_RETRY_SECONDS, is_transient, stage
from textgen import corpus
from textgen.config import Config
from textgen.corpus import RawManifest


def key(config: Config) -> str | None:
    return corpus.source_key(config.data, config.root)


@stage(key, retry_if=is_transient, retry_seconds=NETWORK_RETRY_SECONDS)
def fetch(config: Config) -> RawManifest:
    """Freeze the corpus in data/raw and return its manifest."""
    return corpus.fetch(config.data, config.root)
