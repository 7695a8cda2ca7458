"""A compiled training computes what one that is not compiled does and validates as it does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from textgen.training.checkpoint import CheckpointManifest
from textgen.training.figures import read_log

ROOT = Path(__file__).parents[2]
CLOSE = 1e-4  # nats: a compiled sum is taken in another order


@pytest.mark.slow  # compiles a block from nothing
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_the_losses_of_a_compiled_training_are_those_of_one_that_is_not(tokens, make_config, tmp_path):
    manifests, logged, libraries = [], [], []
    for compiled in (False, True):
        training = {"max_steps": 8, "eval_every": 4, "log_every": 1, "compile": compiled}
        config_file, out = tmp_path / f"{compiled}.yaml", tmp_path / f"{compiled}"
        config_file.write_text(make_config(model={"num_hidden_layers": 2}, training=training).model_dump_json())
        command = ["train", "--config", str(config_file), "--tokens", str(tokens.folder), "--out", str(out)]
        home = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache := tmp_path / f"{compiled}-cache")}
        done = subprocess.run(
            [sys.executable, "-m", "textgen", *command], cwd=ROOT, env=home, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        manifests.append(CheckpointManifest.read(out))
        logged.append([line["train/loss_nats"] for line in read_log(out) if "train/loss_nats" in line])
        libraries.append(list(cache.rglob("*.so")))
    assert libraries[1] and not libraries[0], "the one was not compiled, or the other was"
    assert len(logged[0]) == 8
    assert logged[1] == pytest.approx(logged[0], abs=CLOSE)
    validated = [[validation.loss_nats for validation in manifest.curve] for manifest in manifests]
    assert validated[1] == pytest.approx(validated[0], abs=CLOSE)
