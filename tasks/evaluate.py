"""The task that measures perplexity."""

from tasks.run_page import evaluation_figures
from tasks.stage import stage
from tasks.wandb_run import track
from textgen.config import Config
from textgen.evaluation import evaluate as evaluation
from textgen.evaluation.scoring import Metrics
from textgen.storage import Storage
from textgen.text.corpus import RawManifest
from textgen.text.tokens import TokensManifest
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.handover import bring_training


def key(config: Config, checkpoint: CheckpointManifest, tokens: TokensManifest, raw: RawManifest) -> str:
    # The record is in the training's folder, and another training may have the same weights
    return f"{evaluation.evaluation_key(checkpoint.weights_sha256, tokens, config)}-{checkpoint.folder.name}"


@stage(Metrics, key)
def evaluate(config: Config, checkpoint: CheckpointManifest, tokens: TokensManifest, raw: RawManifest) -> Metrics:
    """Measure the checkpoint on validation and test and return the metrics."""
    storage = Storage(config.storage)
    storage.bring(tokens.folder, TokensManifest)
    if config.evaluation.protocol == "lm-eval":
        storage.bring(raw.folder, RawManifest)
    bring_training(storage, checkpoint.folder)
    metrics = evaluation.evaluate(checkpoint.folder, tokens, config)
    with track(config, checkpoint.folder, parameters=checkpoint.parameters, steps=checkpoint.steps) as run:
        run.summarize(evaluation_figures(metrics))
    return metrics
