"""A row of the README's table of results: run the flow on a configuration, and keep its figures.

Run: python -m tests.benchmarks.record --config wikitext2-cpu --json FILE [--keep FOLDER] [key=value …]

The flow runs in a folder of its own and adds a row to the file. The folder is removed afterwards; `--keep FOLDER` keeps
it, for `textgen evaluate` of several models together. `seconds` are those of the whole command by the clock,
`train_seconds` those of training, validation and saving. `curve` has the seconds of the training, the tokens trained on
and the loss of the validation blocks, in nats a token.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.rows import add_row, command_line, hardware, row_parser, run_and_exit
from textgen.model.device import choose_device
from textgen.training.figures import read_log

KEPT = ("precision", "parameters", "steps", "best_step", "tokens_trained", "train_seconds", "sha256")


def curve_of(training: Path) -> list[dict[str, float]]:
    """Return the validations of a training: seconds, tokens, loss in nats."""
    curve, figures = [], {"train/tokens": 0.0}
    for line in read_log(training):  # a validation's line follows that of its step, which has the seconds
        figures.update(line)
        if "validation/loss_nats" in line:
            seconds = sum((value for name, value in figures.items() if name.startswith("seconds/")), 0.0)
            curve.append({
                "seconds": seconds, "tokens": figures["train/tokens"], "loss_nats": line["validation/loss_nats"],
            })  # fmt: skip
    return curve


def main() -> None:
    parser = row_parser(__doc__)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="the storage root, a new folder that stays")
    options = parser.parse_args()
    if options.keep is not None and options.keep.exists():
        parser.error(f"--keep {options.keep}: it is there already; name a new folder")
    if any(override.startswith("storage.root=") for override in options.overrides):
        parser.error("storage.root: --keep FOLDER names the storage root")
    with tempfile.TemporaryDirectory() as folder:
        root = options.keep or Path(folder, "data")
        command = ["flows.train_flow", "--config", options.config, *options.overrides, f"storage.root={root}"]
        started = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-m", *command, "--json"],
            env={**os.environ, "PREFECT_HOME": f"{folder}/prefect"}, stdout=subprocess.PIPE,
        ) as flow:  # fmt: skip
            signal.signal(signal.SIGTERM, lambda *_: flow.terminate())
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches the flow too, which saves first
            printed, _ = flow.communicate()
        if flow.returncode:  # it said why
            print("no row was added", file=sys.stderr)
            sys.exit(flow.returncode)
        seconds = time.monotonic() - started
        result = json.loads(printed)
        config, checkpoint, tokens = result["config"], result["checkpoint"], result["tokens"]
        row = {
            "command": command_line(),
            "hardware": hardware(choose_device(config["training"]["device"])),
            "environment": checkpoint["environment"],
            "seed": config["seed"],
            "seconds": round(seconds, 1),
            "raw_sha256": tokens["raw_sha256"],
            "vocab_size": tokens["vocab_size"],
            "train_tokens": tokens["splits"]["train"]["tokens"],
            **{name: checkpoint[name] for name in KEPT},
            "curve": curve_of(Path(checkpoint["path"])),
            "splits": result["metrics"],
        }
    add_row(options.json, row)


if __name__ == "__main__":
    run_and_exit(main)
