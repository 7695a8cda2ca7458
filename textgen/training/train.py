"""Training: one flat loop over the steps; once in a while it logs, saves its state and validates."""

import copy
import logging
import math
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from tqdm import tqdm

from textgen.config import Config
from textgen.files import sha256_file, write_atomic
from textgen.model.device import choose_device, compiles, device_name, prepare_cpu, seed_everything, uses_bf16
from textgen.model.pretrained import WEIGHTS_FILE, write_description, write_weights
from textgen.model.transformer import LanguageModel
from textgen.text.tokens import TokensManifest, check_length, load_manifest_tokenizer, load_stream
from textgen.training.batches import BatchOrder
from textgen.training.checkpoint import KEY_FILE, CheckpointManifest
from textgen.training.energy import EnergyMeter
from textgen.training.environment import read_environment
from textgen.training.figures import OnMetrics, TrainingLog, step_figures
from textgen.training.group import Group, check_share, join_group
from textgen.training.interrupt import DeferredSignals
from textgen.training.launch import launch, processes_to_start
from textgen.training.meters import Stopwatch, Throughput, flops_per_token, matrix_peak
from textgen.training.optim import build_optimizers
from textgen.training.out_of_memory import advice_on_memory
from textgen.training.plan import settle, total_steps, train_key
from textgen.training.progress import Progress, Sum, Validation
from textgen.training.state import (
    TrainingState,
    disk_errors,
    is_finished,
    lock_training,
    newest_state,
    restore_best,
    restore_state,
    save_state,
)
from textgen.training.step import Outcomes, Stepper
from textgen.training.validation import Validator
from textgen.training.warm_start import initial_sha256, start_from

log = logging.getLogger(__name__)


def new_state(config: Config, tokens: TokensManifest, device: torch.device) -> TrainingState:
    """Return the state of a training at its beginning: drawn weights, or those that `training.init_from` names.

    Raises:
        InputError: the model to start from is absent or does not fit.
    """
    seed_everything(config.seed)
    model = LanguageModel(config.model, tokens.vocab_size)
    start_from(config, model, tokens)
    model.to(device)
    averaged = copy.deepcopy(model).eval() if config.training.ema_decay is not None else None
    return TrainingState(model, averaged, build_optimizers(model, config.training))


def train(tokens: TokensManifest, config: Config, out: Path, on_metrics: OnMetrics) -> CheckpointManifest:
    """Train a model on `tokens` in the folder `out` and return its manifest.

    A training that was interrupted there continues; one that is finished and verifies returns at once. `on_metrics`
    is called with a step and its figures, in the process that called `train`. SIGINT and SIGTERM take effect
    before the next backward pass or during a validation. The state is saved by then.

    Raises:
        InputError: a split is shorter than `data.seq_length`, the devices are absent, `out` holds another training, or
            the model to start from does not fit.
        Diverged: `max_bad_steps` steps in a row were not finite.
        OutOfMemory: a step or a validation does not fit in memory.
        StateNotSaved: the disk did not take the state.
        WorkerFailed: one of several processes failed.
        Damaged: a file of the model to start from is not what its manifest says.
    """
    check_length(tokens, config.data.seq_length)
    config = settle(tokens, config)
    out, key = out.resolve(), train_key(tokens, config)
    if (processes := processes_to_start(config.training)) > 1:
        with lock_training(out):
            finished = is_finished(out, key)
        if finished:
            return CheckpointManifest.read(out)
        launch(processes, tokens.folder, config, out, on_metrics)
        return CheckpointManifest.read(out).as_built()
    device = choose_device(config.training.device)
    with join_group(device) as group, ExitStack() as lock:
        if group.is_main:
            lock.enter_context(lock_training(out))
        if group.from_main(group.is_main and is_finished(out, key)):
            return CheckpointManifest.read(out)
        prepare_cpu(group.local_size)
        with disk_errors(out), advice_on_memory(config, device, validating=False):
            run = Run(key, tokens, config, out, on_metrics, device, group)
            run.train()
            if group.is_main:
                finish(run)
        group.from_main(None)
    return CheckpointManifest.read(out).as_built()


def restore(out: Path, key: str, state: TrainingState, group: Group) -> None:
    """Fill `state` from the newest saved one that verifies, if there is one, in every process of the group."""
    newest = group.from_main(newest_state(out, key) if group.is_main else None)
    if newest is not None:
        restore_state(newest, state)
        log.info("continuing from step %d", state.progress.step)
        if group.is_main:
            restore_best(newest, out)


class Run:
    """A training on its way, in one of its processes."""

    def __init__(
        self,
        key: str,
        tokens: TokensManifest,
        config: Config,
        out: Path,
        on_metrics: OnMetrics,
        device: torch.device,
        group: Group,
    ) -> None:
        check_share(group.size, config.training)
        self.key, self.tokens, self.config, self.training = key, tokens, config, config.training
        self.out, self.device, self.group = out, device, group
        order = BatchOrder(
            config.seed, load_stream(tokens, "train"), config.data.seq_length, self.training.random_offset
        )
        self.steps = total_steps(self.training, order.blocks)
        self.pace = self.training.pace(self.steps)
        self.initial_sha256 = initial_sha256(config)
        self.state = new_state(config, tokens, device)
        if group.is_main:
            out.mkdir(exist_ok=True)
            write_atomic(out / KEY_FILE, key + "\n")
        self.log = TrainingLog(out, on_metrics) if group.is_main else None
        restore(out, key, self.state, group)
        compiled = compiles(device, self.training.compile)
        self.stepper = Stepper(config, self.state, order, device, group, compiled)
        self.validator = Validator(tokens, config, device, group, compiled)
        self.outcomes = Outcomes(self.training, order, out)
        if group.is_main:
            tokenizer = load_manifest_tokenizer(tokens)
            self.description_files = write_description(
                out, config.model, tokenizer, tokens.vocab_size, config.data.seq_length
            )
        self.watch = Stopwatch(self.progress.seconds)
        self.energy = EnergyMeter(self.progress.joules, device, group.local_size)
        self.parameters = sum(parameter.numel() for parameter in self.state.model.parameters())
        flops = flops_per_token(config.model, self.parameters, tokens.vocab_size, config.data.seq_length)
        peak = matrix_peak(device, self.training.precision) * group.size
        self.throughput = Throughput(flops, peak, self.stepper.tokens_per_step, self.progress)
        self.signals = DeferredSignals()
        self.saved_at = time.monotonic()

    @property
    def progress(self) -> Progress:
        return self.state.progress

    def train(self) -> None:
        """Take the steps that are left."""
        progress, training = self.progress, self.training
        bar = tqdm(
            total=self.steps, initial=progress.step, desc="train", unit="step",
            disable=None if self.group.is_main else True,
        )  # fmt: skip
        with bar, self.signals:
            while True:
                at_the_end = progress.step == self.steps
                validation_due = progress.last_validated < progress.step and (
                    at_the_end or progress.step % self.pace.eval_every == 0
                )
                if progress.step and (validation_due or self.save_due()):
                    self.save()
                if validation_due:
                    self.validate()
                if at_the_end or progress.has_no_patience(training.early_stopping_patience):
                    break
                self.step()
                bar.update()
                if progress.step % self.pace.log_every == 0 or progress.step == self.steps:
                    bar.set_postfix_str(self.log_figures())

    def step(self) -> None:
        """Take one optimizer step, or refuse it if its loss or gradient is not finite."""
        with self.watch("train"):
            outcome = self.stepper.take(self.progress.step, self.steps, before_backward=self.leave_if_told)
        self.outcomes.add(self.progress.step, outcome)
        self.progress.step += 1
        if self.outcomes.must_be_read:
            self.read_steps()

    def read_steps(self) -> None:
        """Read from the device what became of the steps since the last reading; this waits for it."""
        if self.outcomes.unread:
            with self.watch("train"):
                self.outcomes.read(self.progress)

    def log_figures(self) -> str:
        """Log the figures of the steps since the last time, and return the most important ones in words."""
        self.read_steps()
        speed = self.throughput.since_last(self.progress)
        figures = step_figures(self.progress, self.stepper.learning_rate, self.throughput, speed, self.device)
        self.progress.since_log, self.progress.grad_norm = Sum(), None
        if self.log is not None:
            self.log.add(self.progress.step, figures)
        return f"loss {figures.get('train/loss_nats', math.nan):.3f}, {speed:,.0f} tokens/s"

    def save_due(self) -> bool:
        """Return whether so many steps or minutes have passed since a state was saved."""
        minutes = self.training.checkpoint_every_minutes
        if minutes is not None and time.monotonic() - self.saved_at > 60 * minutes:
            return True
        return self.progress.step % self.pace.checkpoint_every == 0

    def save(self) -> None:
        """Save the state."""
        self.read_steps()
        self.energy.update()
        if self.group.is_main:
            with self.watch("saving"):
                save_state(self.out, self.key, self.state, self.training.keep_checkpoints)
        self.saved_at = time.monotonic()

    def validate(self) -> None:
        """Measure the weights on the validation blocks; keep them if they are the best so far."""
        progress, model = self.progress, self.state.evaluated
        with self.watch("validation"):
            loss_nats = self.validator.loss_nats(model, between_batches=self.signals.end_if_pending)
            self.state.model.train()
            validation = Validation(
                step=progress.step,
                tokens=progress.step * self.stepper.tokens_per_step,
                train_loss_nats=progress.since_validation.mean,
                loss_nats=loss_nats,
            )
            progress.curve.append(validation)
            progress.since_validation = Sum()
            if self.log is not None:
                if progress.best is validation:
                    write_weights(model, self.out / WEIGHTS_FILE)
                self.log.add(progress.step, {"validation/loss_nats": loss_nats})

    def leave_if_told(self) -> None:
        """After a signal, or if the agent is gone, save the state and leave. This step has changed nothing yet.

        Raises:
            KeyboardInterrupt: it came to any process of the group, or to the one that started it.
        """
        if not self.group.any(self.signals.pending is not None or self.group.is_orphaned):
            return
        self.save()
        log.info("stopping at step %d; its state is saved", self.progress.step)
        self.signals.end_if_pending()
        raise KeyboardInterrupt


def finish(run: Run) -> None:
    """Leave the finished model, and what there is to know of its training, in the training folder."""
    run.energy.update()
    config, progress = run.config, run.progress
    CheckpointManifest(
        key=run.key,
        tokens_key=run.tokens.key,
        config=config.model_dump(mode="json", include={"seed", "data", "tokenizer", "model", "training"}),
        initial_sha256=run.initial_sha256,
        device=device_name(run.device),
        devices=run.group.size,
        precision="bf16" if uses_bf16(run.device, config.training.precision) else "fp32",
        environment=read_environment(),
        parameters=run.parameters,
        steps=progress.step,
        stopped_early=progress.step < run.steps,
        bad_steps=progress.bad_steps,
        best_step=progress.best.step,
        tokens_trained=progress.step * run.throughput.tokens_per_step,
        train_seconds=sum(progress.seconds.values()),
        speed=run.throughput.whole(progress, run.device),
        curve=progress.curve,
        sha256={name: sha256_file(run.out / name) for name in [WEIGHTS_FILE, *run.description_files]},
    ).write(run.out)
