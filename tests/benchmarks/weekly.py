"""Four weeks of growing text: each week from the champion's trunk, from its weights, or from zero.

Run: OMP_NUM_THREADS=1 python -m tests.benchmarks.weekly [--articles 480] [--steps 400] [--json FILE]

Week n has the first n quarters of some articles of WikiText-2, the first 4,000 characters of each. Each way has a
storage root of its own, with the same first week, and keeps the first week's tokenizer, so that losses are in the same
tokens. `weights` is the recipe where the kept states are deleted before the next week; `warm-up` is the trunk with the
warm-up of a training from zero.

`cpu_seconds` are those of the whole run but for Prefect's server; on a machine that others use too they are the figure
to trust. `difference` is the gate's: nats a token on test, below zero where the new version is better than the champion
before. `saving` is the share of tokens that a new tokenizer would save.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch

from tests.benchmarks.rows import command_line, hardware, write_report
from textgen.config import Config, parse_config
from textgen.model.device import choose_device
from textgen.publishing.tokenizer_fit import measure_saving
from textgen.sections import DataConfig
from textgen.storage import Storage
from textgen.text.corpus import fetch
from textgen.text.documents import by_document, mark_rows
from textgen.text.tokens import tokenize

SHARED = Path(__file__).parents[3] / "shared"
WEEKS = 4
CHARACTERS = 4000  # of an article: many short documents tell the gate more than a few long ones
FROM_CHAMPION = {"init_from": "weekly@champion"}
WAYS: dict[str, dict[str, Any]] = {
    "trunk": FROM_CHAMPION, "weights": FROM_CHAMPION, "zero": {}, "warm-up": FROM_CHAMPION,
}  # fmt: skip


def articles(count: int) -> list[str]:
    """Return the first articles of WikiText-2's train split."""
    (file,) = (SHARED / "wikitext" / "wikitext-2-v1").glob("train-*.parquet")
    rows = pyarrow.parquet.read_table(file).column("text").to_pylist()
    return ["".join(texts)[:CHARACTERS] for texts in islice(by_document(mark_rows(rows)), count)]


def config_of(root: Path, way: str, steps: int) -> Config:
    """Return the configuration of a way: configs/weekly.yaml with a smaller model."""
    warmup = {"warmup_steps": min(100, steps // 10)} if way == "warm-up" else {}
    return parse_config(
        {
            "name": "weekly",
            "data": {"files": str(root / "text"), "seq_length": 128, "validation_fraction": 0.1, "test_fraction": 0.1},
            "tokenizer": {"kind": "bpe", "vocab_size": 1024, "path": "weekly@champion"},
            "model": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2},
            "training": {
                "batch_size": 8, "max_steps": steps, "learning_rate": 3e-3, "optimizer": "muon", "schedule": "wsd",
                "device": "cpu", **WAYS[way], **warmup,
            },
            "tracking": {"mode": "disabled"},
            "storage": {"root": str(root / "data")},
        }
    )  # fmt: skip


def run_week(root: Path, way: str, steps: int, new: list[str]) -> dict[str, Any]:
    """Add text to a root, run the flow there, and return what it cost and what came of it."""
    from flows.train_flow import train_flow

    files = root / "text"
    files.mkdir(parents=True, exist_ok=True)
    week = 1 + len(list(files.iterdir()))
    if way == "weights":
        for path in (root / "data" / "checkpoints").glob("*/trunk*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (files / f"{week}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in new))
    (root / "config.yaml").write_text(json.dumps(config_of(root, way, steps).model_dump(mode="json")))
    started, cpu_started = time.monotonic(), time.process_time()
    result: Any = train_flow(str(root / "config.yaml"))
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu_started
    published, decision, fit = result["published"], result["published"]["decision"], result["tokenizer"]
    return {
        "week": week,
        "train_tokens": result["tokens"]["splits"]["train"]["tokens"],
        "started_from": result["config"]["training"]["init_from"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "train_seconds": round(result["checkpoint"]["train_seconds"], 1),
        "test_loss_nats": result["metrics"]["test"]["loss_nats"],
        "test_bits_per_byte": result["metrics"]["test"]["bits_per_byte"],
        "best_step": result["checkpoint"]["best_step"],
        "version": published["version"],
        "promoted": published["promoted"],
        "reason": published["reason"],
        "difference": decision["difference"],
        "interval": [decision["low"], decision["high"]],
        "bytes_per_token": fit["bytes_per_token"] if fit is not None else None,
        "saving": fit["saving"] if fit is not None else None,
    }


def saving_on_other_text(root: Path, steps: int) -> float:
    """Return the share of tokens that a new tokenizer would save on Python's documentation, in place of WikiText-2."""
    storage, config = Storage.at(root / "data"), config_of(root, "trunk", steps)
    raw = fetch(DataConfig(dataset_name="python-docs"), storage)
    kept = config.tokenizer.model_copy(update={"path": "weekly@v1"})
    return measure_saving(raw, tokenize(raw, kept, storage))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--articles", type=int, default=480)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    texts = articles(options.articles)
    quarter = len(texts) // WEEKS
    quarters = [texts[start : start + quarter] for start in range(0, quarter * WEEKS, quarter)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PREFECT_HOME"] = f"{folder}/prefect"  # before it is imported
        first = Path(folder) / "first"
        week = run_week(first, "trunk", options.steps, quarters[0])
        weeks: dict[str, list[dict[str, Any]]] = {}
        for way in WAYS:
            root = Path(shutil.copytree(first, Path(folder) / way))
            weeks[way] = [week, *(run_week(root, way, options.steps, new) for new in quarters[1:])]
        report = {
            "command": command_line(),
            "threads": torch.get_num_threads(),
            "hardware": hardware(choose_device("cpu")),
            "weeks": weeks,
            "saving_on_python_docs": saving_on_other_text(first, options.steps),
        }
    write_report(report, options.json)


if __name__ == "__main__":
    main()
