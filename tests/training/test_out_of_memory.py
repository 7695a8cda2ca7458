"""Too little memory: one line that says which settings to lower, and to what."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

import textgen.training.step
import textgen.training.train
import textgen.training.validation
from tests.trainings import ignore
from textgen.config import parse_config
from textgen.errors import OutOfMemory
from textgen.training.out_of_memory import advice_on_memory
from textgen.training.plan import train_key
from textgen.training.state import newest_state
from textgen.training.train import train

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
# What torch's allocator of CPU memory raises, to the letter
CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
FAILURES = {
    "cpu": partial(RuntimeError, CPU_MESSAGE),
    "cuda": partial(torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB."),
    "python": MemoryError,
}
# Sets the most memory that it may map to what it has now and this many bytes more, and is then `python -m textgen`.
COMMAND_WITH_A_LIMIT = """
import resource, runpy, sys
from pathlib import Path
import textgen.training.train
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
runpy.run_module("textgen", run_name="__main__", alter_sys=True)
"""


def on_call(times: int, function: Callable, error: Exception) -> Callable:
    """Return `function`, which raises `error` in its call of this number, counted from 1."""
    calls = 0

    def failing(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == times:
            raise error
        return function(*arguments, **named)

    return failing


def advice(error: Exception, validating: bool = False, **sections: dict) -> str:
    """Return what is said when this error comes."""
    with pytest.raises(OutOfMemory) as caught, advice_on_memory(parse_config(sections), CPU, validating):
        raise error
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_torch_says_of_an_impossible_allocation_what_is_looked_for():
    with (
        pytest.raises(OutOfMemory, match="out of memory in a training step on cpu"),
        advice_on_memory(parse_config({}), CPU, validating=False),
    ):
        torch.empty(10**15)


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize(
    ("size", "micro_steps", "divisor"), [(2, 1, 2), (8, 1, 2), (32, 4, 2), (9, 2, 3), (35, 3, 5), (7, 1, 7)]
)
def test_the_advice_for_a_step_is_a_smaller_batch_and_the_same_product(kind, size, micro_steps, divisor):
    text = advice(FAILURES[kind](), training={"batch_size": size, "gradient_accumulation_steps": micro_steps})
    numbers = re.search(
        r"training\.batch_size=(\d+) in place of (\d+) and "
        r"training\.gradient_accumulation_steps=(\d+) in place of (\d+): "
        r"the same steps in about 1/(\d+) of the memory$",
        text,
    )
    assert numbers is not None, text
    new_size, old_size, new_micro_steps, old_micro_steps, share = (int(number) for number in numbers.groups())
    assert (old_size, old_micro_steps, share) == (size, micro_steps, divisor)
    assert new_size == size / divisor
    assert new_size * new_micro_steps == size * micro_steps


def test_the_advice_can_be_followed_down_to_a_batch_of_one_and_then_names_the_sequence():
    training = {"batch_size": 24, "gradient_accumulation_steps": 1}
    for _ in range(4):
        text = advice(MemoryError(), training=training)
        settings = re.findall(r"training\.(\w+)=(\d+) in place", text)
        training = {name: int(value) for name, value in settings}
    assert training == {"batch_size": 1, "gradient_accumulation_steps": 24}
    text = advice(MemoryError(), training=training, data={"seq_length": 100})
    assert text.endswith("set data.seq_length=50 in place of 100, or choose a smaller model")


def test_the_advice_for_a_validation_is_its_batch_and_then_the_sequence():
    text = advice(MemoryError(), validating=True, evaluation={"batch_size": 32})
    assert "out of memory in a validation on cpu: set evaluation.batch_size=16 in place of 32" in text
    assert "training.batch_size" not in text
    text = advice(MemoryError(), validating=True, evaluation={"batch_size": 1}, data={"seq_length": 9})
    assert "data.seq_length=4 in place of 9" in text


def test_a_sequence_of_one_token_is_not_shortened_to_none():
    sections = {"training": {"batch_size": 1}, "data": {"seq_length": 1}, "evaluation": {"stride": 1}}
    assert "data.seq_length=1 in place of 1, or choose a smaller model" in advice(MemoryError(), **sections)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no"), OSError()]
)
@pytest.mark.parametrize("validating", [False, True])
def test_any_other_error_passes_unchanged(error, validating):
    with pytest.raises(type(error)) as caught, advice_on_memory(parse_config({}), CPU, validating):
        raise error
    assert caught.value is error
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(("kind", "where"), [("cpu", "forward"), ("cuda", "optimizer"), ("python", "forward")])
def test_a_step_that_does_not_fit_is_advised_on_and_continues_from_its_state(
    kind, where, tokens, make_config, tmp_path, monkeypatch
):
    config, failure = make_config(training={"gradient_accumulation_steps": 3, "max_steps": 10}), FAILURES[kind]()
    name, call = {"forward": ("cross_entropy_sum", 3 * 7 + 2), "optimizer": ("take_step", 7 + 1)}[where]
    owner = textgen.model.loss if where == "forward" else textgen.training.step
    advised = r"training\.batch_size=4 in place of 8 and training\.gradient_accumulation_steps=6 in place of 3"
    with monkeypatch.context() as patch, pytest.raises(OutOfMemory, match=advised):
        patch.setattr(owner, name, on_call(call, getattr(owner, name), failure))
        train(tokens, config, tmp_path / "out", ignore)
    saved = newest_state(tmp_path / "out", train_key(tokens, config))
    assert saved is not None and saved.folder.name == "step-00000005"
    assert train(tokens, config, tmp_path / "out", ignore).steps == 10


@pytest.mark.parametrize("kind", FAILURES)
def test_before_a_validation_that_does_not_fit_the_state_was_saved(kind, tokens, make_config, tmp_path, monkeypatch):
    config = make_config(
        training={"checkpoint_every": 100, "eval_every": 7, "max_steps": 10}, evaluation={"batch_size": 6}
    )
    with monkeypatch.context() as patch, pytest.raises(OutOfMemory, match=r"evaluation\.batch_size=3 in place of 6"):
        patch.setattr(
            textgen.training.validation, "score", on_call(2, textgen.training.validation.score, FAILURES[kind]())
        )
        train(tokens, config, tmp_path / "out", ignore)
    saved = newest_state(tmp_path / "out", train_key(tokens, config))
    assert saved is not None and saved.folder.name == "step-00000007"
    followed = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"batch_size": 3})})
    steps: list[int] = []
    manifest = train(tokens, followed, tmp_path / "out", lambda step, figures: steps.append(step))
    assert min(steps) == 7, "the advice, once followed, makes another training"
    assert manifest.steps == 10


def test_an_error_in_a_step_that_is_not_of_memory_passes_unchanged(tokens, make_config, tmp_path, monkeypatch):
    error = RuntimeError("something else")
    monkeypatch.setattr(textgen.training.step, "take_step", on_call(3, textgen.training.step.take_step, error))
    with pytest.raises(RuntimeError) as caught:
        train(tokens, make_config(), tmp_path / "out", ignore)
    assert caught.value is error


def test_a_step_too_large_for_the_machine_is_one_line_of_the_command(tokens, make_config, tmp_path):
    config = make_config(training={"batch_size": 30000})
    (tmp_path / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    command = [sys.executable, "-c", COMMAND_WITH_A_LIMIT, str(2**29), "train"]
    options = ["--config", tmp_path / "config.yaml", "--tokens", tokens.folder, "--out", tmp_path / "out"]
    run = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == (
        "out of memory in a training step on cpu: set training.batch_size=15000 in place of 30000 and "
        "training.gradient_accumulation_steps=2 in place of 1: the same steps in about 1/2 of the memory\n"
    )
