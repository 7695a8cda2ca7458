"""One row of a search: train a configuration, and score it on validation. Test is never scored.

Run: python -m tests.benchmarks.search --config default --json FILE [key=value …]

Each run adds its row to the file. `settings` are those that differ from the defaults of the code: in a YAML file they
are the configuration that was trained. `validation` is measured by the `sliding` protocol, over the whole split, with
the weights that the training kept. `train_seconds` are those of the training by the clock, `cpu_seconds` those of all
cores; on a machine that other work uses too, the second are the figure to trust. Two runs at once, each with
OMP_NUM_THREADS=1, use two cores better than one run after the other.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.training_step import hardware
from textgen.config import Config, find_config, load_config
from textgen.evaluation.protocols import read_tokens_split
from textgen.evaluation.scoring import FIGURES, measure
from textgen.model.device import autocast, choose_device
from textgen.model.loss import device_of
from textgen.model.pretrained import load_model
from textgen.model.transformer import LanguageModel
from textgen.storage import Storage
from textgen.text.corpus import fetch
from textgen.text.tokens import TokensManifest, tokenize
from textgen.training.train import train


def row_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a command that adds a row to a file."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a YAML file, or the name of a shipped one")
    parser.add_argument("--json", type=Path, required=True, help="the file that gets one row more")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser


def tokens_of(config: Config) -> TokensManifest:
    """Return the tokens of a configuration, made where they are not there yet."""
    storage = Storage(config.storage)
    return tokenize(fetch(config.data, storage), config.tokenizer, storage, config.data.end_of_document)


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a file of rows, and print it."""
    rows = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*rows, row], indent=2) + "\n")
    print(json.dumps(row))


def score_split(model: LanguageModel, tokens: TokensManifest, split: str, config: Config) -> dict[str, Any]:
    """Return the figures of a split by the `sliding` protocol, in the precision of the training as the flow has it."""
    text = read_tokens_split(tokens, split, "sliding", config.data.seq_length, config.stride)
    with autocast(device_of(model), config.training.precision):
        return measure(model, text, config.evaluation.batch_size).metrics.model_dump(mode="json")


def row_of(config: Config, tokens: TokensManifest) -> dict[str, Any]:
    """Train a model in a folder that is removed afterwards, and return what it cost and its figures on validation."""
    with tempfile.TemporaryDirectory() as folder:
        cpu_started = time.process_time()
        checkpoint = train(tokens, config, Path(folder), on_metrics=lambda step, figures: None)
        cpu_seconds = time.process_time() - cpu_started
        model = load_model(checkpoint.folder, choose_device(config.training.device)).model
        scores = score_split(model, tokens, "validation", config)
    return {
        "threads": torch.get_num_threads(),
        "commit": checkpoint.environment and checkpoint.environment.git_commit,
        "parameters": checkpoint.parameters,
        "steps": checkpoint.steps,
        "best_step": checkpoint.best_step,
        "tokens_trained": checkpoint.tokens_trained,
        "train_tokens": tokens.splits["train"].tokens,
        "train_seconds": round(checkpoint.train_seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "last_train_loss_nats": checkpoint.curve[-1].train_loss_nats,
        "validation": {name: scores[name] for name in FIGURES},
    }


def main() -> None:
    options = row_parser(__doc__).parse_args()
    config = load_config(find_config(options.config), options.overrides)
    row = {
        "hardware": hardware(choose_device(config.training.device)),
        "settings": config.model_dump(mode="json", exclude_defaults=True, exclude={"storage"}),
        **row_of(config, tokens_of(config)),
    }
    add_row(options.json, row)


if __name__ == "__main__":
    main()
