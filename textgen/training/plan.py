"""What a training will do, known before it starts: its steps, the settings that its length decides, and its keys."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textgen.config import Config
from textgen.errors import InputError
from textgen.files import content_key
from textgen.sections import TrainingConfig
from textgen.storage import Storage
from textgen.text.tokens import TokensManifest
from textgen.training.batches import blocks_an_epoch
from textgen.training.folder import Origin, texts_of
from textgen.training.trunk import INHERITED, LENGTH, Trunk, bring_trunks, find_trunk, trunk_step
from textgen.training.warm_start import OtherModel, find_other

TRAIN_VERSION = 5  # of the algorithm; a change makes every training key new


@dataclass(frozen=True)
class Plan:
    """What a training will do."""

    config: Config  # with numbers in place of the training's nulls
    steps: int
    other: OtherModel | None  # to start from
    key: str
    trunk_key: str  # the same for every length
    trunk_step: int | None  # whose state is kept; None: it cannot be made longer

    @property
    def initial_sha256(self) -> str | None:
        """The sha256 of the weights that it starts from, None where they are drawn."""
        return self.other.weights_sha256 if self.other is not None else None

    def origin(self, tokens: TokensManifest) -> Origin:
        """Return what the training is made of."""
        initial, texts, names_all = None, [tokens.raw_key], True
        if self.other is not None:
            folder, root = self.other.folder.absolute(), Storage(self.config.storage).local.absolute()
            initial = (folder.relative_to(root) if folder.is_relative_to(root) else folder).as_posix()
            before, names_all = texts_of(folder)
            texts += [key for key in before if key not in texts]
        return Origin(
            key=self.key, tokens_key=tokens.key, initial_sha256=self.initial_sha256, initial=initial, texts=texts,
            names_all_texts=names_all,
        )  # fmt: skip

    def fits(self, trunk: Trunk) -> bool:
        """Return whether the training may go on from a trunk."""
        return self.trunk_step is not None and trunk.fits(self.trunk_key, self.config.training, self.steps)


def plan_training(tokens: TokensManifest, config: Config, home: Path | None = None) -> Plan:
    """Return what a training on `tokens` will do.

    The warm-up, and how it validates, are as they are set; where that is null, those of a training in `home` (None: in
    the storage root) that this one goes on from; else by the number of steps. From a state that another model's
    training kept before its decay there is no warm-up.

    Raises:
        InputError: the warm-up is too long, or the model to start from is absent.
        Damaged: a file of that model is not what its manifest says.
    """
    training, other = config.training, find_other(config)
    initial = other.key_part if other is not None else None
    steps = planned_steps(tokens, config)
    part = training.key_part()
    trunk_key = _key(tokens, config, {name: part[name] for name in part if name not in (*LENGTH, *INHERITED)}, initial)
    if other is not None and other.kept is not None and training.warmup_steps is None:
        # In the kept state the learning rate is at its peak, and the moments are there.
        training = training.model_copy(update={"warmup_steps": 0})
    may_inherit = trunk_step(training, steps) is not None
    if may_inherit and any(getattr(training, name) is None for name in INHERITED):
        if home is None:
            bring_trunks(storage := Storage(config.storage))
            home = storage.training()
        trunk = find_trunk(home, lambda trunk: trunk.fits(trunk_key, config.training, steps))
        training = training.model_copy(update=trunk.inherited() if trunk is not None else {})
    training = training.model_copy(update=training.pace(steps)._asdict())
    check_warmup(training, steps)
    key = _key(tokens, config, training.key_part(), initial)
    config = config.model_copy(update={"training": training})
    return Plan(config, steps, other, key, trunk_key, trunk_step(training, steps))


def train_key(tokens: TokensManifest, config: Config) -> str:
    """Return the key of a training: the algorithm, the tokens and every setting that the weights depend on."""
    return plan_training(tokens, config).key


def planned_steps(tokens: TokensManifest, config: Config) -> int:
    """Return the number of optimizer steps of a training on `tokens`."""
    in_train, training = tokens.splits["train"].tokens, config.training
    return total_steps(training, blocks_an_epoch(in_train, config.data.seq_length, training.random_offset))


def total_steps(training: TrainingConfig, blocks_in_train: int) -> int:
    """Return the number of optimizer steps: `max_steps`, or as many as `epochs` passes over the blocks take."""
    if training.max_steps is not None:
        return training.max_steps
    assert training.epochs is not None
    return math.ceil(training.epochs * blocks_in_train / training.sequences_per_step)


def check_warmup(training: TrainingConfig, steps: int) -> None:
    """Check that the warm-up is over before the last of the steps.

    Raises:
        InputError: it is not.
    """
    if training.pace(steps).warmup_steps >= steps:
        raise InputError(
            f"training.warmup_steps={training.warmup_steps} is not below the {steps} steps "
            f"that training.epochs={training.epochs} makes"
        )


def _key(tokens: TokensManifest, config: Config, training: dict[str, Any], initial: str | list[str] | None) -> str:
    parts = {"seed": config.seed, "model": config.model.key_part(), "training": training}
    sequences = config.training.sequences_per_step
    return content_key(TRAIN_VERSION, tokens.key, config.data.seq_length, sequences, parts, initial)
