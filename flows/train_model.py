"""The training stage as a flow of its own: what a GPU work pool runs."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.exceptions import TerminationSignal

from tasks.cancel import ended_by
from tasks.redact import redacted
from tasks.stage import run_stage
from tasks.train import train
from tasks.wandb_run import one_run
from textgen.config import Config
from textgen.storage import Storage
from textgen.text.tokens import TokensManifest


@flow(name="train-model", flow_run_name="{config.name} {folder}", persist_result=True, result_serializer="json")
@redacted()
def train_model(config: Config, tokens_key: str, folder: str) -> Any:
    """Train a model on tokens that the parent flow made, in a folder of checkpoints/; return its manifest.

    Args:
        config: The whole configuration.
        tokens_key: The folder of the tokens in processed/, in the storage that both flows reach.
        folder: The folder of the training in checkpoints/: the same folder is continued.
    """
    storage = Storage(config.storage)
    home = storage.processed(tokens_key)
    storage.bring(home, TokensManifest)
    here = config.model_copy(update={"compute": config.compute.model_copy(update={"gpu_deployment": None})})
    try:
        with one_run():
            checkpoint, _ = run_stage(train, here, tokens=TokensManifest.read(home), folder=Path(folder).name)
    except TerminationSignal as signal:
        return ended_by(signal)
    return checkpoint.model_dump(mode="json")
