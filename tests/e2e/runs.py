"""What tests of runs share: the command, a tiny corpus, a tiny model, and what is looked at in a storage."""

import json
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from tests import waiting
from tests.e2e.services import ROOT, Prefect, processes_of_run, until
from tests.waiting import narrow
from textgen.publishing.version import PublishedManifest
from textgen.sections import SPLITS
from textgen.training.figures import read_log

STEPS = 100
CHECKPOINT_EVERY, LOG_EVERY = 10, 2
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "birds"]
TINY = (
    "name=tiny", "tokenizer.vocab_size=300", "data.seq_length=16", "tracking.mode=disabled",
    "publish.policy=always",  # random words: nothing beats a unigram model
    f"model.hidden_size={narrow(32)}", f"model.intermediate_size={narrow(64)}", "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "training.warmup_steps=2", "training.eval_every=50", "training.eval_blocks=16",
    f"training.checkpoint_every={CHECKPOINT_EVERY}", f"training.log_every={LOG_EVERY}",
)  # fmt: skip


def write_corpus(folder: Path) -> str:
    """Write a corpus of three small files and return the override that names it."""
    draw = random.Random(0)
    for split in SPLITS:
        (folder / f"{split}.txt").write_text("\n".join(" ".join(draw.choices(WORDS, k=20)) for _ in range(200)) + "\n")
    return "data.files={" + ", ".join(f"{split}: {folder / split}.txt" for split in SPLITS) + "}"


def tiny_run(corpus: str, *overrides: str, steps: int = STEPS, seed: int = 1, **run: Any) -> dict[str, Any]:
    """Return the parameters of a run that trains a tiny model on the gpu pool."""
    return {
        "config": "default",
        "training": {"steps": steps, "seed": seed},
        "run": {"gpu_deployment": "train-model/gpu", **run},
        "overrides": [corpus, *overrides, *TINY],
    }


def training_folder(root: Path) -> Path:
    """Return the one training folder of a storage."""
    (folder,) = {path.parent for path in root.glob("checkpoints/*/log.jsonl")}
    return folder


def steps_logged(root: Path) -> list[int]:
    return [int(line["step"]) for line in read_log(training_folder(root)) if "train/loss_nats" in line]


def until_child_trains(stack: Prefect, run_id: str) -> list[int]:
    """Wait until the training that a run started has a process, and return the processes."""
    (child,) = until(lambda: stack.children(run_id), "the run starts a training")
    return until(lambda: processes_of_run(child["id"]), "the training has a process")


def until_trained(root: Path) -> int:
    """Wait until a training has come some random number of steps far, with a state saved; return the step."""
    wanted = random.randint(CHECKPOINT_EVERY + LOG_EVERY, STEPS // 2)

    def far() -> int:
        if not list(root.glob("checkpoints/*/states/step-*/manifest.json")):
            return 0
        return step if (step := max(steps_logged(root), default=0)) >= wanted else 0

    return waiting.until(far, f"the training comes to step {wanted}")


def check_every_step(root: Path) -> None:
    """Check that no step was taken twice or left out, and that nothing was damaged."""
    assert steps_logged(root) == list(range(LOG_EVERY, STEPS + 1, LOG_EVERY))
    assert not list(root.rglob("*.damaged*"))


def check_one_version(root: Path) -> None:
    """Check that one version was published and is the champion, of a training without a gap."""
    versions = sorted(root.glob("models/tiny/v*"))
    assert [version.name for version in versions] == ["v1"]
    PublishedManifest.read(versions[0])
    assert (root / "models" / "tiny" / "champion").read_text().strip() == "v1"
    check_every_step(root)


def joined(stack: Prefect, run_id: str) -> bool:
    """Return whether a run waits for a training that another process does."""
    return logged(stack, run_id, "training in the run ")


def logged(stack: Prefect, run_id: str, start: str) -> bool:
    """Return whether a line of a run's log begins so."""
    return any(line.startswith(start) for line in stack.logs(run_id))


def continued_from(stack: Prefect, run_id: str) -> list[int]:
    """Return the steps that the trainings of a run's children continued from."""
    children = stack.children(run_id)
    for child in children:
        if child["state_name"] == "Completed":  # what it logged before its last line is there with it
            until(partial(logged, stack, child["id"], "train: "), "the last line of the training's log")
    lines = [line for child in children for line in stack.logs(child["id"])]
    return [int(line.split()[-1]) for line in lines if line.startswith("continuing from step")]


def run_command(home: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m flows.train_flow` in the environment `home`."""
    command = [sys.executable, "-m", "flows.train_flow", *arguments]
    return subprocess.run(command, cwd=ROOT, env=home, capture_output=True, text=True)


def succeed(home: dict[str, str], *arguments: str) -> dict[str, Any]:
    """Return the JSON document of a command that succeeds."""
    done = run_command(home, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
