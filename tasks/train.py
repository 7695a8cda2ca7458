"""The task that trains the model, here or on the work pool of another deployment."""

import logging
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun

from tasks.dispatch import train_elsewhere
from tasks.report import shown
from tasks.run_page import training_figures
from tasks.stage import stage
from tasks.wandb_run import track
from textgen.config import Config
from textgen.errors import Diverged, InputError, OutOfMemory, StateNotSaved, TrainingCancelled
from textgen.model.transformer import count_parameters
from textgen.storage import Storage
from textgen.text.tokens import TokensManifest
from textgen.training import train as training
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.handover import bring_training, bring_trunk, mirrored
from textgen.training.plan import plan_training, train_key

log = logging.getLogger(__name__)

RETRY_SECONDS = [1, 10]
# A second attempt would end the same way.
FINAL = (
    InputError, Diverged, OutOfMemory, StateNotSaved, TrainingCancelled,
    PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError,
)  # fmt: skip


def key(config: Config, tokens: TokensManifest, folder: str | None = None) -> str:
    return f"{train_key(tokens, config)}-{folder}"


def can_resume(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Return whether to go on with a training that failed: it continues from its last state."""
    try:
        state.result()
    except FINAL:
        return False
    except Exception as error:
        log.warning("the training failed: %s; continuing from its last state", error)
        return True
    return False


@stage(CheckpointManifest, key, retry_if=can_resume, retry_seconds=RETRY_SECONDS)
def train(config: Config, tokens: TokensManifest, folder: str | None = None) -> CheckpointManifest:
    """Train in data/checkpoints, in `folder` or else that of the training's key; return the best weights' manifest."""
    storage = Storage(config.storage)
    plan = plan_training(tokens, config)
    config, out = plan.config, storage.training(folder or plan.key)
    storage.bring(tokens.folder, TokensManifest)
    bring_training(storage, out)
    if config.compute.gpu_deployment is not None:
        return train_elsewhere(config, tokens, out, storage)
    bring_trunk(storage, plan, out)
    facts = {"parameters": count_parameters(config.model, tokens.vocab_size), "steps": plan.steps}
    with mirrored(storage, out), track(config, out, **facts) as run, shown(config, tokens) as progress:

        def on_metrics(step: int, figures: dict[str, float]) -> None:
            run.log(step, figures)
            progress.log(step, figures)
            progress.link(run.url)

        checkpoint = training.train(tokens, config, out, on_metrics)
        run.summarize(training_figures(checkpoint))
    storage.push(out, checkpoint)
    return checkpoint
