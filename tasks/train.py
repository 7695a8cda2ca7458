"""The task that trains the model."""

from tasks.stage import stage
from tasks.tracking import track
from textgen import train as training
from textgen.config import Config
from textgen.tokens import TokensManifest
from textgen.train import CheckpointManifest


def key(config: Config, tokens: TokensManifest) -> str:
    return training.train_key(tokens, config)


@stage(key)
def train(config: Config, tokens: TokensManifest) -> CheckpointManifest:
    """Train in data/checkpoints, in the folder of the training's key, and return the manifest of the best weights."""
    training_key = training.train_key(tokens, config)
    out = config.root / "checkpoints" / training_key
    with track(config, training_key, "train") as run:
        return training.train(tokens, config, out, on_metrics=run.log)
