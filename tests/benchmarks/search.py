"""One row of a search: train a configuration, and score it on validation. Test is never scored.

Run: python -m tests.benchmarks.search --config default --json FILE [key=value …]

Each run adds its row to the file. `settings` are those that differ from the defaults of the code: in a YAML file they
are the configuration that was trained. `validation` is measured by the `sliding` protocol, over the whole split, with
the weights that the training kept. `train_seconds` are those of the training by the clock, `cpu_seconds` those of all
cores, which other work on the machine lengthens less. Two runs at once, each with OMP_NUM_THREADS=1, use two cores
better than one run after the other; each needs a file of its own.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.rows import add_row, command_line, hardware, row_parser, run_and_exit, score_split, tokens_of
from textgen.config import Config, find_config, load_config
from textgen.evaluation.scoring import FIGURES
from textgen.model.device import choose_device
from textgen.model.pretrained import load_model
from textgen.text.tokens import TokensManifest
from textgen.training.train import train


def row_of(config: Config, tokens: TokensManifest) -> dict[str, Any]:
    """Train a model in a folder that is removed afterwards, and return what it cost and its figures on validation."""
    with tempfile.TemporaryDirectory() as folder:
        cpu_started = time.process_time()
        checkpoint = train(tokens, config, Path(folder) / "training", on_metrics=lambda step, figures: None)
        cpu_seconds = time.process_time() - cpu_started
        model = load_model(checkpoint.folder, choose_device(config.training.device)).model
        scores = score_split(model, tokens, "validation", config)
    return {
        "threads": torch.get_num_threads(),
        "environment": checkpoint.environment and checkpoint.environment.model_dump(),
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
        "command": command_line(),
        "hardware": hardware(choose_device(config.training.device)),
        "settings": config.model_dump(mode="json", exclude_defaults=True, exclude={"storage"}),
        **row_of(config, tokens_of(config)),
    }
    add_row(options.json, row)


if __name__ == "__main__":
    run_and_exit(main)
