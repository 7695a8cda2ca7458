"""The task that measures perplexity."""

from tasks.stage import stage
from tasks.tracking import track
from textgen.config import Config
from textgen.evaluation import evaluate as evaluation
from textgen.evaluation.scoring import Metrics
from textgen.storage import Storage
from textgen.text.corpus import RawManifest
from textgen.text.tokens import TokensManifest
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.handover import bring_training


def key(config: Config, checkpoint: CheckpointManifest, tokens: TokensManifest, raw: RawManifest) -> str:
    return evaluation.evaluation_key(checkpoint.weights_sha256, tokens, config)


@stage(Metrics, key)
def evaluate(config: Config, checkpoint: CheckpointManifest, tokens: TokensManifest, raw: RawManifest) -> Metrics:
    """Measure the checkpoint on validation and test and return the metrics."""
    storage = Storage(config.storage)
    storage.bring(tokens.folder, TokensManifest)
    if config.evaluation.protocol == "lm-eval":
        storage.bring(raw.folder, RawManifest)
    bring_training(storage, checkpoint.folder)
    metrics = evaluation.evaluate(checkpoint.folder, tokens, config)
    with track(config, checkpoint.key, "evaluate") as run:
        run.summarize(
            {
                f"{split}/{name}": value
                for split, figures in metrics.splits.items()
                for name, value in figures.model_dump().items()
            }
        )
    return metrics
