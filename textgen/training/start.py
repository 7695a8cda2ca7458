"""Where a training starts: at its end, from a saved state, from a shorter training, from another model, or at zero."""

import copy
import logging
from pathlib import Path

import torch

from textgen.model.device import seed_everything
from textgen.model.transformer import LanguageModel
from textgen.text.tokens import TokensManifest
from textgen.training.optim import build_optimizers
from textgen.training.plan import Plan
from textgen.training.state import StateManifest, TrainingState, is_finished, newest_state, restore_moments
from textgen.training.trunk import INHERITED, find_trunk, find_trunk_state, make_way
from textgen.training.warm_start import in_words, start_from

log = logging.getLogger(__name__)


def is_done(plan: Plan, out: Path) -> bool:
    """Return whether the training is finished in `out`; a shorter one there that it goes on from makes way.

    Raises:
        InputError: another training is there.
    """
    make_way(out, plan.key, plan.fits)
    return is_finished(out, plan.key)


def find_state(plan: Plan, out: Path) -> StateManifest | None:
    """Return the furthest saved state that verifies: of the training in `out`, or of one that it goes on from."""
    own = newest_state(out, plan.key)
    step = own.progress.step if own is not None else 0
    alone = out.name.startswith(f"{plan.key}-")  # trained again by force: not from what another one kept
    trunk = find_trunk_state(
        out.parent, lambda trunk: plan.fits(trunk) and trunk.step > step and not (alone and trunk.folder != out)
    )
    if trunk is None:
        if own is not None:
            log.info("continuing from step %d", step)
            return own
        if not alone:
            _say_what_differs(plan, out)
        if plan.config.training.init_from is not None:
            log.info("%s", in_words(plan.config, plan.other))
        return None
    inherited = ", ".join(f"training.{name}={getattr(plan.config.training, name)}" for name in INHERITED)
    source = trunk.folder.parents[1]
    log.info("going on from step %d of %s, where its decay began, with %s", trunk.progress.step, source, inherited)
    return trunk


def _say_what_differs(plan: Plan, out: Path) -> None:
    """Log why the training does not go on from a shorter one whose length is not all that differs."""
    training = plan.config.training
    if (trunk := find_trunk(out.parent, lambda trunk: trunk.key == plan.trunk_key)) is None:
        return
    differing = [
        f"training.{name} is {getattr(trunk, name)} there and {getattr(training, name)} here"
        for name in trunk.set_otherwise(training)
    ]
    if differing:
        log.info("not going on from step %d of %s: %s", trunk.step, trunk.folder, ", ".join(differing))


def new_state(plan: Plan, tokens: TokensManifest, device: torch.device) -> TrainingState:
    """Return the state of a training at its beginning: drawn weights, or those that `training.init_from` names.

    Raises:
        InputError: the model to start from does not fit.
    """
    config, other = plan.config, plan.other
    seed_everything(config.seed)
    model = LanguageModel(config.model, tokens.vocab_size)
    if other is not None:
        start_from(other, config, model, tokens)
    model.to(device)
    averaged = copy.deepcopy(model).eval() if config.training.ema_decay is not None else None
    state = TrainingState(model, averaged, build_optimizers(model, config.training))
    if other is not None and other.kept is not None:
        restore_moments(other.kept, state.optimizers)
    return state
