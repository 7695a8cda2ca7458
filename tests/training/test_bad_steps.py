"""Steps whose loss or gradient is not finite: refused, counted, named in the log, and the end of it if they go on."""

import json
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests.trainings import Interruption, ignore
from textgen.config import Config
from textgen.errors import Diverged
from textgen.files import Manifest
from textgen.model.device import seed_everything
from textgen.model.loss import NextTokenLoss
from textgen.model.pretrained import WEIGHTS_FILE
from textgen.model.transformer import LanguageModel
from textgen.text.tokens import load_stream
from textgen.training.batches import BatchOrder
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.figures import LOG_FILE
from textgen.training.folder import STATES_FOLDER
from textgen.training.optim import lr_at
from textgen.training.plan import train_key
from textgen.training.state import newest_state
from textgen.training.step import Stepper
from textgen.training.train import Run, train

STEPS = 20
VARIANTS = {
    "adamw": {},
    "muon": {"optimizer": "muon"},
    "averaged": {"ema_decay": 0.9},
    "accumulating": {"batch_size": 4, "gradient_accumulation_steps": 2},
}


def tensors(run: Run) -> list[bytes]:
    """Return the bytes of the parameters and of all that the optimizers remember."""
    states = [state for optimizer in run.state.optimizers for state in optimizer.state.values()]
    remembered = [tensor for state in states for tensor in state.values()]
    return [tensor.detach().numpy().tobytes() for tensor in [*run.state.model.parameters(), *remembered]]


def outcome(out: Path) -> list[bytes]:
    """Return the bytes of what a finished training leaves: the best weights and the last state."""
    states = (out / STATES_FOLDER / f"step-{STEPS:08d}").glob("*.safetensors")
    return [path.read_bytes() for path in [out / WEIGHTS_FILE, *sorted(states)]]


def logged(out: Path, figure: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (out / LOG_FILE).read_text().splitlines()]
    return {line["step"]: line[figure] for line in lines if figure in line}


@pytest.fixture
def poison(monkeypatch) -> Callable[..., list[Tensor]]:
    """Return a function that makes these steps, counted from 0, bad: their loss, their gradient or both.

    It returns a list that receives the inputs [B, T] of the bad steps' first batches.
    """

    def poison(*steps: int, kind: str = "both") -> list[Tensor]:
        taken: list[Tensor] = []
        batch, forward, now = Stepper.batch, NextTokenLoss.forward, [0]

        def watched(stepper: Stepper, first: int) -> tuple[Tensor, Tensor]:
            x_BT, y_BT = batch(stepper, first)
            is_first = first % stepper.training.sequences_per_step == 0
            now[0] = stepper.state.progress.step
            if now[0] in steps and is_first:
                taken.append(x_BT)
            return x_BT, y_BT

        def spoiled(module: NextTokenLoss, x_BT: Tensor, y_BT: Tensor) -> Tensor:
            loss = forward(module, x_BT, y_BT)
            if now[0] not in steps:
                return loss
            if kind == "gradient":
                loss.register_hook(lambda gradient: gradient * torch.inf)
                return loss
            return loss * torch.nan if kind == "both" else loss + torch.nan  # whose gradient is finite

        monkeypatch.setattr(Stepper, "batch", watched)
        monkeypatch.setattr(NextTokenLoss, "forward", spoiled)
        return taken

    return poison


@pytest.fixture
def changed_by(monkeypatch) -> dict[int, bool]:
    """Return a mapping that receives, for each step, whether it changed the parameters or the moments."""
    changed: dict[int, bool] = {}
    step = Run.step

    def watched(run: Run) -> None:
        before, number = tensors(run), run.progress.step
        step(run)
        changed[number] = tensors(run) != before

    monkeypatch.setattr(Run, "step", watched)
    return changed


@pytest.mark.parametrize("kind", ["loss", "gradient", "both"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bad_step_changes_nothing_and_the_run_ends_finite(
    variant, kind, tokens, make_config, tmp_path, poison, changed_by
):
    config = make_config(training=VARIANTS[variant])
    poison(5, 11, 12, kind=kind)
    manifest = train(tokens, config, tmp_path / "out", ignore)
    assert [step for step, changed in changed_by.items() if not changed] == [5, 11, 12]
    assert manifest.steps == STEPS
    assert manifest.bad_steps == 3
    assert logged(tmp_path / "out", "train/bad_steps") == {5: 0, 10: 1, 15: 3, 20: 3}
    assert all(math.isfinite(loss) for loss in logged(tmp_path / "out", "train/loss_nats").values())
    assert all(math.isfinite(point.loss_nats) and math.isfinite(point.train_loss_nats) for point in manifest.curve[1:])
    for file in (tmp_path / "out").rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values()), file
    assert manifest.curve[-1].loss_nats < manifest.curve[0].loss_nats - 0.5, "it did not learn"


def test_a_first_step_that_is_bad_changes_no_parameter(tokens, make_config, tmp_path, poison):
    poison(0)
    config = make_config(training={"checkpoint_every": 1, "keep_checkpoints": STEPS})
    manifest = train(tokens, config, tmp_path / "out", ignore)
    seed_everything(config.seed)
    drawn = dict(LanguageModel(config.model, tokens.vocab_size).named_parameters())
    first = load_file(tmp_path / "out" / STATES_FOLDER / "step-00000001" / WEIGHTS_FILE)
    assert all(torch.equal(first[name], drawn[name]) for name in first)
    assert manifest.curve[-1].loss_nats < manifest.curve[0].loss_nats - 0.5


def test_a_run_with_bad_steps_is_plain_adamw_without_them(tokens, make_config, tmp_path, poison):
    bad = {0, 7, 8, 15}
    config = make_config(training={"weight_decay": 0.1, "adam_epsilon": 1e-4})
    poison(*bad)
    train(tokens, config, tmp_path / "out", ignore)
    ours = load_file(tmp_path / "out" / STATES_FOLDER / f"step-{STEPS:08d}" / WEIGHTS_FILE)

    seed_everything(config.seed)
    model = LanguageModel(config.model, tokens.vocab_size)
    order = BatchOrder(config.seed, load_stream(tokens, "train"), 16, random_offset=False)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-4, foreach=False, fused=False)
    for step in range(STEPS):
        x_BT, y_BT = order.take(step * 8, 8)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, STEPS, config.training)
        F.cross_entropy(model(x_BT).flatten(0, 1), y_BT.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.max_grad_norm)
        if step not in bad:
            optimizer.step()
        optimizer.zero_grad()
    theirs = {name: parameter.detach() for name, parameter in model.named_parameters()}
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("random_offset", [False, True])
@pytest.mark.parametrize("variant", ["adamw", "accumulating"])
def test_the_log_says_where_the_batch_of_a_bad_step_is(
    variant, random_offset, tokens, make_config, tmp_path, poison, caplog
):
    config = make_config(training={**VARIANTS[variant], "random_offset": random_offset, "max_steps": 60})
    bad = poison(6, 59)
    caplog.set_level(logging.WARNING)
    train(tokens, config, tmp_path / "out", ignore)
    pattern = (
        r"step (\d+) refused: loss nan, gradient norm nan; "
        r"its batch starts with sample (\d+) \(epoch (\d+), token (\d+)\)"
    )
    warnings = [re.fullmatch(pattern, record.getMessage()) for record in caplog.records]
    assert all(warnings) and len(warnings) == len(bad) == 2
    stream_N = load_stream(tokens, "train")
    blocks = (len(stream_N) - (15 if random_offset else 0) - 1) // 16
    for warning, x_BT, step in zip(warnings, bad, (6, 59), strict=True):
        number, sample, epoch, token = (int(part) for part in warning.groups())
        assert (number, sample, epoch) == (step + 1, step * 8, step * 8 // blocks)
        assert x_BT[0].tolist() == stream_N[token : token + 16].tolist()
    assert int(warnings[1][3]) > 0, "all in the first epoch: nothing to tell apart"


@pytest.mark.parametrize("variant", VARIANTS)
def test_so_many_bad_steps_in_a_row_end_the_training(variant, tokens, make_config, tmp_path, poison):
    config = make_config(training={**VARIANTS[variant], "max_bad_steps": 4, "log_every": 1})
    poison(7, 8, 9, 10, 11)
    message = (
        r"^4 steps in a row, up to step 11, had a loss or gradient that is not finite \(training\.max_bad_steps=4\); "
        r"lower training\.learning_rate=0\.01, for a new training\. The states saved before are as they were, in "
        + re.escape(str(tmp_path / "out"))
        + "$"
    )
    steps: list[int] = []
    with pytest.raises(Diverged, match=message):
        train(tokens, config, tmp_path / "out", lambda step, figures: steps.append(step))
    assert max(steps) == 10, "it went on"
    assert not (tmp_path / "out" / Manifest.FILE).exists()
    saved = newest_state(tmp_path / "out", train_key(tokens, config))
    assert saved is not None and saved.folder.name == "step-00000010"
    for file in saved.folder.glob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values()), file


def test_a_training_that_diverged_goes_on_where_more_bad_steps_are_allowed(tokens, make_config, tmp_path, poison):
    poison(7, 8, 9, 10, 11)
    with pytest.raises(Diverged):
        train(tokens, make_config(training={"max_bad_steps": 2}), tmp_path / "out", ignore)
    steps: list[int] = []
    config = make_config(training={"max_bad_steps": 6, "log_every": 1})
    manifest = train(tokens, config, tmp_path / "out", lambda step, figures: steps.append(step))
    assert min(steps) == 6, "the state of step 5 was not continued"
    assert manifest.bad_steps == 5


@pytest.mark.parametrize("every", [1, 3, 7, STEPS])
def test_a_good_step_starts_the_count_again(every, tokens, make_config, tmp_path, poison):
    config = make_config(training={"max_bad_steps": 3, "log_every": every, "checkpoint_every": every})
    poison(3, 4, 6, 7, 9, 11, 12, 18, 19)
    assert train(tokens, config, tmp_path / "out", ignore).bad_steps == 9


def test_one_bad_step_ends_a_training_that_allows_none(tokens, make_config, tmp_path, poison):
    poison(13)
    with pytest.raises(Diverged, match=r"^1 steps in a row, up to step 14,"):
        train(tokens, make_config(training={"max_bad_steps": 1}), tmp_path / "out", ignore)


@pytest.fixture(scope="module")
def interrupted_config(make_config) -> Config:
    return make_config(
        model={"dropout": 0.2},
        training={"log_every": 1, "eval_every": 10, "checkpoint_every": 4, "max_bad_steps": 4, "ema_decay": 0.8},
    )


def interrupted(tokens, config: Config, out: Path, *steps: int) -> CheckpointManifest:
    """Train, but be interrupted at each of these steps."""
    for step in steps:
        with pytest.raises(Interruption):
            train(tokens, config, out, lambda at, figures, step=step: throw() if at == step else None)
    return train(tokens, config, out, ignore)


def throw() -> None:
    raise Interruption


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_bad_steps_and_interruptions_give_the_same_bytes(optimizer, tokens, interrupted_config, tmp_path, poison):
    training = interrupted_config.training.model_copy(update={"optimizer": optimizer})
    config = interrupted_config.model_copy(update={"training": training})
    poison(3, 6, 7, 8, 14)
    whole = interrupted(tokens, config, tmp_path / "whole")
    parts = interrupted(tokens, config, tmp_path / "parts", 4, 7, 8, 9, 17)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
    assert parts.bad_steps == whole.bad_steps == 5
    assert parts.curve == whole.curve
    for figure in ("train/bad_steps", "train/grad_norm"):
        of_parts, of_whole = (logged(tmp_path / name, figure) for name in ("parts", "whole"))
        assert of_parts == of_whole
    assert list(of_parts) == [step for step in range(1, STEPS + 1) if step not in (4, 7, 8, 9, 15)], "sound steps"
    assert list(logged(tmp_path / "parts", "train/bad_steps")) == list(range(1, STEPS + 1))
    assert logged(tmp_path / "parts", "train/bad_steps") == logged(tmp_path / "whole", "train/bad_steps")
    assert logged(tmp_path / "parts", "train/loss_nats") == logged(tmp_path / "whole", "train/loss_nats")


def test_the_count_goes_on_over_an_interruption(tokens, interrupted_config, tmp_path, poison):
    poison(6, 7, 8, 9)
    with pytest.raises(Diverged, match=r"^4 steps in a row, up to step 10,"):
        interrupted(tokens, interrupted_config, tmp_path / "out", 9)


def test_what_no_line_has_told_yet_is_known_after_an_interruption(tokens, make_config, tmp_path, poison, monkeypatch):
    config = make_config(training={"log_every": 100, "eval_every": 10, "checkpoint_every": 4, "max_bad_steps": 4})
    poison(3, 5, 6, 7, 13)
    whole = train(tokens, config, tmp_path / "whole", ignore)
    step = Run.step
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        patch.setattr(Run, "step", lambda run: throw() if run.progress.step == 9 else step(run))
        train(tokens, config, tmp_path / "parts", ignore)
    parts = train(tokens, config, tmp_path / "parts", ignore)
    assert parts.bad_steps == whole.bad_steps == 5
    assert parts.curve == whole.curve
    assert logged(tmp_path / "parts", "train/loss_nats") == logged(tmp_path / "whole", "train/loss_nats")


def test_without_bad_steps_none_is_counted_or_warned_of(tokens, make_config, tmp_path, caplog, changed_by):
    caplog.set_level(logging.WARNING)
    manifest = train(tokens, make_config(), tmp_path / "out", ignore)
    assert manifest.bad_steps == 0
    assert set(logged(tmp_path / "out", "train/bad_steps").values()) == {0}
    assert changed_by == dict.fromkeys(range(STEPS), True)
    assert not caplog.records
