"""A compiled training computes what one that is not compiled does and validates as it does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from textgen.model.cached import CachedModel
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.figures import read_log

ROOT = Path(__file__).parents[2]
CLOSE = 1e-4  # nats: a compiled sum is taken in another order
CLOSE_INT8 = 0.2  # of logits: a compiled step does not round its inputs to bf16


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


@pytest.mark.slow  # compiles a step from nothing
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_step_gives_what_one_that_is_not_compiled_does(opinionated, monkeypatch):
    """Nor does one model run what was compiled for another one: nothing else tells their tensors apart.

    At the last place of the context a process's second model failed: its step was compiled for a part of the cache.
    """
    text, pairs = list(range(20)), []
    for int8, close in ((False, CLOSE), (True, CLOSE_INT8)):
        models = [CachedModel(opinionated[1].model, len(text), 2, int8=int8) for _ in range(2)]
        seconds = iter([2.0, 1.0])
        monkeypatch.setattr(models[1], "_step_seconds", lambda seconds=seconds: next(seconds))
        assert models[1].compile()
        pairs.append((models, close))
    with torch.inference_mode():
        for models, _ in pairs:
            for model in models:
                model.read([text[:4]], [0])
        for place in range(4, len(text)):
            for models, close in pairs:
                expected, found = (model.step([text[place]], [place]) for model in models)
                torch.testing.assert_close(found, expected, atol=close, rtol=close)
        for models, close in pairs:
            expected, found = (model.step([1, 2], [19, 0]) for model in models)
            torch.testing.assert_close(found, expected, atol=close, rtol=close)


def test_a_step_is_not_compiled_where_that_is_no_faster_or_there_is_no_compiler(opinionated, monkeypatch, caplog):
    model = CachedModel(opinionated[1].model, 32, 2)
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    seconds = iter([1.0, 2.0])
    with monkeypatch.context() as patch:
        patch.setattr(model, "_step_seconds", lambda: next(seconds))
        assert not model.compile()

    def fail(*arguments: object) -> torch.Tensor:
        raise RuntimeError("no working C++ compiler was found")

    monkeypatch.setattr(torch, "compile", lambda function, **how: fail)
    with caplog.at_level("INFO"):
        assert not model.compile() and "no working C++ compiler" in caplog.text
    assert model.step([1], [0]).isfinite().all()
