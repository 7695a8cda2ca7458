"""The task that freezes the corpus."""

from tasks.stage import NETWORK_RETRY_SECONDS, is_transient, stage
from textgen.config import Config
from textgen.storage import Storage
from textgen.text import corpus
from textgen.text.corpus import RawManifest


def key(config: Config, refresh: bool = False) -> str | None:
    folder = corpus.raw_folder(config.data, config.root, refresh)
    return folder.name if folder is not None else None


@stage(RawManifest, key, retry_if=is_transient, retry_seconds=NETWORK_RETRY_SECONDS)
def fetch(config: Config, refresh: bool = False) -> RawManifest:
    """Freeze the corpus in data/raw and return its manifest; with `refresh`, as it is on the Hub now."""
    storage, pins = Storage(config.storage), corpus.pin_file(config.data, config.root)
    if pins is not None:
        storage.bring_file(pins)
    if (folder := corpus.raw_folder(config.data, config.root, refresh)) is not None:
        storage.bring(folder, RawManifest)
    raw = corpus.fetch(config.data, config.root, refresh)
    storage.push(raw.folder, raw)
    if pins is not None:
        storage.push_file(pins)
    return raw
