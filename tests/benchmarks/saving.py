"""What saving costs: the share of a training's seconds that it takes to save the state every 100 steps.

Run: python -m tests.benchmarks.saving
"""

import json
import tempfile
from pathlib import Path

from textgen.config import load_config
from textgen.storage import Storage
from textgen.text.corpus import fetch
from textgen.text.tokens import tokenize
from textgen.training.train import train

CONFIG = Path(__file__).parents[2] / "configs" / "default.yaml"
OVERRIDES = ["training.max_steps=400", "training.checkpoint_every=100"]


def main() -> None:
    config = load_config(CONFIG, OVERRIDES)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tokens = tokenize(fetch(config.data, Storage.at(root)), config.tokenizer, Storage.at(root))
        seconds = train(tokens, config, root / "out", lambda step, figures: None).speed.seconds
    print(json.dumps({"seconds": seconds, "share_of_saving": seconds["saving"] / sum(seconds.values())}))


if __name__ == "__main__":
    main()
