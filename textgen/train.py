"""Training: the batches in their order, and one flat loop over the steps."""

import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from textgen.checkpoint import Progress, Validation, restore_state, save_state
from textgen.config import Config, TrainingConfig
from textgen.device import autocast, choose_device, seed_everything
from textgen.evaluate import blocks, score
from textgen.export import WEIGHTS_FILE, write_description, write_weights
from textgen.files import Damaged, InputError, Manifest, content_key, set_aside, sha256_file
from textgen.model import LanguageModel, next_token_loss
from textgen.optim import build_optimizer, lr_at
from textgen.tokens import TokensManifest, block_count, check_length, load_manifest_tokenizer, load_stream, take_blocks

TRAIN_VERSION = 1  # of the algorithm; a change makes every training key new

OnMetrics = Callable[[int, dict[str, float]], None]


class CheckpointManifest(Manifest):
    """A finished training: the weights that were best on validation, and how they came about."""

    tokens_key: str
    config: dict[str, Any]
    device: str
    parameters: int
    steps: int
    best_step: int
    tokens_trained: int
    train_seconds: float
    curve: list[Validation]
    sha256: dict[str, str]

    def sha256_by_file(self) -> dict[str, str]:
        return self.sha256

    @property
    def weights_sha256(self) -> str:
        return self.sha256[WEIGHTS_FILE]


class Diverged(Exception):
    """The loss is no longer a finite number."""


def train_key(tokens: TokensManifest, config: Config) -> str:
    """Return the key of a training: the algorithm, the tokens and every setting that the weights depend on."""
    parts = config.model_dump(mode="json", include={"seed", "model", "training"})
    return content_key(TRAIN_VERSION, tokens.key, config.data.seq_length, parts)


def total_steps(training: TrainingConfig, blocks_in_train: int) -> int:
    """Return the number of optimizer steps: `max_steps`, or as many as `epochs` passes over the blocks take."""
    if training.max_steps is not None:
        return training.max_steps
    assert training.epochs is not None
    return math.ceil(training.epochs * blocks_in_train / (training.batch_size * training.gradient_accumulation_steps))


class BlockOrder:
    """Which block is trained on when: shuffled anew each epoch, known from the seed and a counter alone."""

    def __init__(self, seed: int, blocks_in_train: int) -> None:
        self.seed, self.count = seed, blocks_in_train
        self.epoch, self.order = -1, torch.empty(0, dtype=torch.long)

    def take(self, first: int, size: int) -> Tensor:
        """Return the block numbers [size] of samples `first`, `first + 1`, … of the whole training."""
        return torch.stack([self._sample(number) for number in range(first, first + size)])

    def _sample(self, number: int) -> Tensor:
        epoch, position = divmod(number, self.count)
        if epoch != self.epoch:
            seed = hashlib.sha256(f"{self.seed}:{epoch}".encode()).digest()[:8]
            generator = torch.Generator().manual_seed(int.from_bytes(seed, "big", signed=True))
            self.epoch, self.order = epoch, torch.randperm(self.count, generator=generator)
        return self.order[position]


def train(tokens: TokensManifest, config: Config, out: Path, on_metrics: OnMetrics) -> CheckpointManifest:
    """Train a model on `tokens` in the folder `out` and return its manifest.

    A training that was interrupted there continues; one that is finished and verifies returns at once. `on_metrics`
    is called with a step and its figures.

    Raises:
        InputError: a split is shorter than `data.seq_length`, the device is absent, or `out` holds another training.
        Diverged: the loss became infinite or not a number.
    """
    check_length(tokens, config.data.seq_length)
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f".{out.name}.lock")):
        if (out / CheckpointManifest.FILE).exists():
            try:
                manifest = CheckpointManifest.read(out)
            except Damaged as damage:
                set_aside(out, damage)
            else:
                if manifest.key != train_key(tokens, config):
                    raise InputError(f"{out}: a finished training of another configuration or text is here")
                return manifest
        out.mkdir(exist_ok=True)
        return _train(tokens, config, out, on_metrics)


def _train(tokens: TokensManifest, config: Config, out: Path, on_metrics: OnMetrics) -> CheckpointManifest:
    training, seq_length, key = config.training, config.data.seq_length, train_key(tokens, config)
    device = choose_device(training.device)
    seed_everything(config.seed)
    model = LanguageModel(config.model, tokens.vocab_size).to(device)
    optimizer = build_optimizer(model, training)
    train_N, validation_N = load_stream(tokens, "train"), load_stream(tokens, "validation")
    blocks_in_train = block_count(len(train_N), seq_length)
    order = BlockOrder(config.seed, blocks_in_train)
    validation_windows = list(blocks(len(validation_N), seq_length, limit=training.eval_blocks))
    steps = total_steps(training, blocks_in_train)
    if training.warmup_steps >= steps:
        raise InputError(
            f"training.warmup_steps={training.warmup_steps} is not below the {steps} steps "
            f"that training.epochs={training.epochs} makes"
        )
    micro_steps, batch_size = training.gradient_accumulation_steps, training.batch_size
    tokens_per_step = micro_steps * batch_size * seq_length

    progress = restore_state(out, key, model, optimizer) or Progress()
    started, seconds_before = time.monotonic(), progress.seconds
    logged_at, logged_step = started, progress.step
    loss_sum = torch.tensor(progress.loss_sum_nats, device=device)
    description_files = write_description(
        out, config.model, load_manifest_tokenizer(tokens), tokens.vocab_size, seq_length
    )
    bar = tqdm(total=steps, initial=progress.step, desc="train", unit="step", disable=None)
    while True:
        evaluation_due = progress.step % training.eval_every == 0 or progress.step == steps
        if evaluation_due and progress.last_validated < progress.step:
            model.eval()
            with autocast(device, training.precision):
                nats, scored = score(model, validation_N, validation_windows, config.evaluation.batch_size)
            model.train()
            validation = Validation(
                step=progress.step,
                tokens=progress.step * tokens_per_step,
                train_loss_nats=loss_sum.item() / progress.loss_count if progress.loss_count else None,
                loss_nats=nats / scored,
            )
            progress.curve.append(validation)
            loss_sum, progress.loss_count = torch.zeros((), device=device), 0
            if progress.best is validation:
                write_weights(model, out / WEIGHTS_FILE)
            on_metrics(progress.step, {"validation/loss_nats": validation.loss_nats})
        if progress.step and (progress.step % training.checkpoint_every == 0 or progress.step == steps):
            progress.loss_sum_nats = loss_sum.item()
            progress.seconds = seconds_before + time.monotonic() - started
            save_state(out, key, model, optimizer, progress, training.keep_checkpoints)
        if progress.step == steps:
            break

        learning_rate = lr_at(progress.step, steps, training)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        step_loss = torch.zeros((), device=device)
        for micro_step in range(micro_steps):
            first = (progress.step * micro_steps + micro_step) * batch_size
            x_BT, y_BT = take_blocks(train_N, seq_length, order.take(first, batch_size))
            with autocast(device, training.precision):
                loss = next_token_loss(model, x_BT.to(device), y_BT.to(device)) / micro_steps
            loss.backward()
            step_loss += loss.detach()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        progress.step += 1
        loss_sum += step_loss
        progress.loss_count += 1

        bar.update()
        if progress.step % training.log_every == 0 or progress.step == steps:
            if not math.isfinite(step_loss.item()):
                raise Diverged(f"the loss at step {progress.step} is {step_loss.item()}; lower training.learning_rate")
            now = time.monotonic()
            tokens_per_second = (progress.step - logged_step) * tokens_per_step / (now - logged_at)
            logged_at, logged_step = now, progress.step
            bar.set_postfix_str(f"loss {step_loss.item():.3f}, {tokens_per_second:,.0f} tokens/s")
            on_metrics(
                progress.step,
                {
                    "train/loss_nats": step_loss.item(),
                    "train/learning_rate": learning_rate,
                    "train/grad_norm": grad_norm.item(),
                    "train/tokens": float(progress.step * tokens_per_step),
                    "train/tokens_per_second": tokens_per_second,
                },
            )
    bar.close()

    manifest = CheckpointManifest(
        key=key,
        tokens_key=tokens.key,
        config=config.model_dump(mode="json", include={"seed", "data", "tokenizer", "model", "training"}),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=steps,
        best_step=progress.best.step,
        tokens_trained=steps * tokens_per_step,
        train_seconds=progress.seconds,
        curve=progress.curve,
        sha256={name: sha256_file(out / name) for name in [WEIGHTS_FILE, *description_files]},
    )
    manifest.write(out)
    return CheckpointManifest.read(out)
