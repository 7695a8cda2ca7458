"""The task that freezes the corpus."""

from tasks.stage import NETWORK_RETRY_SECONDS, is_transient, stage
from textgen.config import Config
from textgen.storage import Storage
from textgen.text import corpus
from textgen.text.corpus import RawManifest


def key(config: Config, refresh: bool = False) -> str | None:
    folder = corpus.raw_folder(config.data, Storage(config.storage), refresh)
    return folder.name if folder is not None else None


@stage(RawManifest, key, retry_if=is_transient, retry_seconds=NETWORK_RETRY_SECONDS)
def fetch(config: Config, refresh: bool = False) -> RawManifest:
    """Freeze the corpus in data/raw and return its manifest; with `refresh`, as it is on the Hub now."""
    return corpus.fetch(config.data, Storage(config.storage), refresh)
