"""Runs of the flow on a tiny configuration, for tests."""

import json
import random
from pathlib import Path
from typing import Any

from flows.train_flow import train_flow
from textgen.config import Config, parse_config
from textgen.sections import SPLITS

STAGES = ("fetch", "tokenize", "train", "evaluate", "publish")
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "birds"]


def tiny(folder: Path, **changes: Any) -> Config:
    """Return a configuration of text files in `folder`, written where they are not there, and a storage beside them."""
    draw = random.Random(0)
    for split in SPLITS:
        path = folder / f"{split}.txt"
        if not path.exists():
            path.write_text("\n".join(" ".join(draw.choices(WORDS, k=20)) for _ in range(60)) + "\n")
    values = {
        "data": {
            "files": {split: str(folder / f"{split}.txt") for split in SPLITS},
            "document": "line",
            "seq_length": 16,
        },
        "tokenizer": {"kind": "bpe", "vocab_size": 300},
        "model": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        "training": {"batch_size": 4, "max_steps": 6, "warmup_steps": 2, "eval_every": 3},
        "evaluation": {"stride": 8},
        "publish": {"policy": "always"},  # a model of six steps does not beat a unigram model
        "tracking": {"mode": "disabled"},
        "storage": {"root": str(folder / "data")},
    }
    for section, keys in changes.items():
        values[section] = {**values[section], **keys} if isinstance(keys, dict) else keys
    return parse_config(values)


def run_flow(config: Config, **parameters: Any) -> dict[str, Any]:
    """Run the flow and return its result."""
    path = config.root.with_suffix(".yaml")
    path.write_text(json.dumps(config.model_dump(mode="json")), "utf-8")
    return train_flow(str(path), **parameters)


def cached(result: dict[str, Any]) -> list[str]:
    """Return the stages that a run did not do again."""
    return [name for name, report in result["stages"].items() if report["cached"]]
