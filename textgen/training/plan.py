"""What a training will do, known before it starts: its steps, the settings that its length decides, and its key."""

import math

from textgen.config import Config
from textgen.errors import InputError
from textgen.files import content_key
from textgen.sections import TrainingConfig
from textgen.text.tokens import TokensManifest
from textgen.training.batches import blocks_an_epoch
from textgen.training.warm_start import initial_sha256

TRAIN_VERSION = 5  # of the algorithm; a change makes every training key new


def total_steps(training: TrainingConfig, blocks_in_train: int) -> int:
    """Return the number of optimizer steps: `max_steps`, or as many as `epochs` passes over the blocks take."""
    if training.max_steps is not None:
        return training.max_steps
    assert training.epochs is not None
    return math.ceil(training.epochs * blocks_in_train / training.sequences_per_step)


def planned_steps(tokens: TokensManifest, config: Config) -> int:
    """Return the number of optimizer steps of a training on `tokens`."""
    in_train, training = tokens.splits["train"].tokens, config.training
    return total_steps(training, blocks_an_epoch(in_train, config.data.seq_length, training.random_offset))


def settle(tokens: TokensManifest, config: Config) -> Config:
    """Return the configuration with the training's pace in place of its nulls.

    Raises:
        InputError: the warm-up is not over before the last of the steps.
    """
    steps = planned_steps(tokens, config)
    pace = config.training.pace(steps)
    if pace.warmup_steps >= steps:
        raise InputError(
            f"training.warmup_steps={pace.warmup_steps} is not below the {steps} steps "
            f"that training.epochs={config.training.epochs} makes"
        )
    return config.model_copy(update={"training": config.training.model_copy(update=pace._asdict())})


def train_key(tokens: TokensManifest, config: Config) -> str:
    """Return the key of a training: the algorithm, the tokens and every setting that the weights depend on.

    Raises:
        InputError: the warm-up is too long, or the model to start from is absent.
        Damaged: a file of that model is not what its manifest says.
    """
    config = settle(tokens, config)
    parts = {"seed": config.seed, "model": config.model.key_part(), "training": config.training.key_part()}
    sequences = config.training.sequences_per_step
    return content_key(TRAIN_VERSION, tokens.key, config.data.seq_length, sequences, parts, initial_sha256(config))
