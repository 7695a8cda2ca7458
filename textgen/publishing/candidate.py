"""What may become a version: a checkpoint, its metrics, and what they were made of."""

from dataclasses import dataclass

from textgen.config import Config
from textgen.evaluation.scoring import Metrics
from textgen.publishing.resolution import Resolution
from textgen.publishing.tokenizer_fit import TokenizerFit
from textgen.text.corpus import RawManifest
from textgen.text.tokens import TokensManifest
from textgen.training.checkpoint import CheckpointManifest


@dataclass(frozen=True)
class Candidate:
    """What each stage before publishing made."""

    checkpoint: CheckpointManifest
    metrics: Metrics
    tokens: TokensManifest
    raw: RawManifest
    config: Config
    resolution: Resolution | None = None  # of the models that the configuration names
    fit: TokenizerFit | None = None  # of a tokenizer that was kept
