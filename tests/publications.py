"""A tiny model made by the library alone, from a text to its published folder, for tests of what comes after."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import textgen.publishing.card
from tests.trainings import ignore
from textgen.config import Config
from textgen.evaluation.evaluate import evaluate
from textgen.evaluation.scoring import Metrics
from textgen.files import write_atomic
from textgen.publishing.candidate import Candidate
from textgen.publishing.publish import publish
from textgen.publishing.resolution import resolve_champions
from textgen.publishing.tokenizer_fit import measure_fit
from textgen.publishing.version import PublishedManifest
from textgen.storage import Storage
from textgen.text import corpus
from textgen.text.corpus import RawManifest
from textgen.text.tokens import TokensManifest, tokenize
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.plan import train_key
from textgen.training.train import train


@dataclass(frozen=True)
class Publication:
    """What each stage made."""

    config: Config
    raw: RawManifest
    tokens: TokensManifest
    checkpoint: CheckpointManifest
    metrics: Metrics
    published: PublishedManifest

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.checkpoint, self.metrics, self.tokens, self.raw, self.config)


def make(config: Config, flow_run_id: str | None = None) -> Publication:
    """Run the stages, each as the flow runs it, and return what they made."""
    storage = Storage(config.storage)
    raw = corpus.fetch(config.data, storage)
    config, resolution = resolve_champions(config, raw, storage)
    tokens = tokenize(raw, config.tokenizer, storage, config.data.end_of_document)
    fit = measure_fit(resolution, raw, tokens, config, storage)
    checkpoint = train(tokens, config, storage.training(train_key(tokens, config)), ignore)
    metrics = evaluate(checkpoint.folder, tokens, config)
    published = publish(Candidate(checkpoint, metrics, tokens, raw, config, resolution, fit), storage, flow_run_id)
    return Publication(config, raw, tokens, checkpoint, metrics, published)


def leave_out_pictures(replace: Callable[[object, str, object], None]) -> None:
    """Have a card get a few bytes for each picture, by `setattr` or a monkeypatch's: to draw them takes longest."""
    for plot in ("plot_training", "plot_data"):
        replace(textgen.publishing.card, plot, lambda *arguments: write_atomic(arguments[-1], b"a picture"))


def write_text(folder: Path, text: dict[str, str]) -> dict[str, str]:
    """Write a text file a split and return them as `data.files` names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in text.items():
        (folder / f"{split}.txt").write_text(rows, "utf-8")
    return {split: str(folder / f"{split}.txt") for split in text}
