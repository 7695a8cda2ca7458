"""Publishing and the commands on models, in a forked process that is killed before a chosen change to the models."""

import gc
import os
import sys
from pathlib import Path

import matplotlib.figure  # noqa: F401  imported once, by the fork server
import pyarrow.dataset
import pyarrow.parquet  # noqa: F401
from huggingface_hub import ModelCardData  # noqa: F401

import textgen.__main__
import textgen.publishing.publish
from tests.e2e.killable import kill_before
from tests.publications import leave_out_pictures
from textgen.publishing.candidate import Candidate
from textgen.publishing.version import Sample
from textgen.storage import Storage
from textgen.text.overlap import Runs

Runs({"": ()})  # what each character of Unicode is, found here and not by each publication
gc.freeze()  # as killable does


def publish(candidate: Candidate, output: Path, kill_at: int | None) -> None:
    """Publish; what takes long and is not about files is left out: the check with transformers, samples, plots."""
    textgen.publishing.publish.check_with_transformers = lambda folder, rows: None
    drawn = [Sample(prompt="the", continuation="old river")], [list(range(20))]
    textgen.publishing.publish.draw_samples = lambda checkpoint, raw, seed: drawn
    leave_out_pictures(setattr)
    config = candidate.config
    _begin(config.root / "models" / config.name, output, kill_at)
    textgen.publishing.publish.publish(candidate, Storage(config.storage))


def command(arguments: list[str], home: Path, output: Path, kill_at: int | None) -> None:
    """Run a command of `textgen`."""
    _begin(home, output, kill_at)
    sys.exit(textgen.__main__.main(arguments))


def _begin(home: Path, output: Path, kill_at: int | None) -> None:
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if kill_at is not None:
        fsync = os.fsync
        kill_before(kill_at, "", home)
        os.fsync = fsync  # to a process that reads the files later, a kill before it or after it is the same
