"""Training: one flat loop over the steps; once in a while it logs, saves its state and validates."""

import logging
import math
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from textgen.bar import Bar
from textgen.config import RECORDED, Config
from textgen.files import sha256_file, write_atomic
from textgen.model.device import check_compiler, choose_device, compiles, device_name, has_amx, prepare_cpu, uses_bf16
from textgen.model.pretrained import WEIGHTS_FILE, write_description, write_weights
from textgen.terminal import bytes_in_words, counted, seconds_in_words
from textgen.text.tokens import TokensManifest, check_length, load_manifest_tokenizer, load_stream
from textgen.training.batches import BatchOrder
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.energy import EnergyMeter
from textgen.training.environment import read_environment
from textgen.training.estimate import Timer, bytes_there, check_room, disk_bytes, rest_in_words
from textgen.training.figures import OnMetrics, TrainingLog, step_figures
from textgen.training.folder import KEY_FILE
from textgen.training.group import Group, check_share, join_group
from textgen.training.interrupt import DeferredSignals
from textgen.training.launch import launch, processes_to_start
from textgen.training.meters import Stopwatch, Throughput, flops_per_token, matrix_peak, memory_peak_bytes
from textgen.training.out_of_memory import advice_on_memory
from textgen.training.plan import Plan, plan_training
from textgen.training.progress import Progress, Sum, Validation
from textgen.training.start import find_state, is_done, new_state
from textgen.training.state import (
    disk_errors,
    lock_training,
    restore_best,
    restore_state,
    save_state,
)
from textgen.training.step import Outcomes, Stepper
from textgen.training.trunk import FINAL_WEIGHT_DECAY, keep_trunk, outlook
from textgen.training.validation import Validator

log = logging.getLogger(__name__)


def train(tokens: TokensManifest, config: Config, out: Path, on_metrics: OnMetrics) -> CheckpointManifest:
    """Train a model on `tokens` in the folder `out` and return its manifest.

    A training that was interrupted there continues; one that is finished and verifies returns at once. `on_metrics`
    is called with a step and its figures, in the process that called `train`. SIGINT and SIGTERM take effect
    before the next backward pass or during a validation. The state is saved by then.

    Raises:
        InputError: a split is shorter than `data.seq_length`, the devices or the compiler are absent, `out` holds
            another training, or the model to start from does not fit.
        Diverged: `max_bad_steps` steps in a row were not finite.
        OutOfMemory: a step or a validation does not fit in memory.
        StateNotSaved: the disk did not take the state.
        WorkerFailed: one of several processes failed.
        Damaged: a file of the model to start from is not what its manifest says.
    """
    check_length(tokens, config.data.seq_length)
    out = out.resolve()
    if (processes := processes_to_start(config.training)) > 1:
        plan = plan_training(tokens, config, out.parent)
        with lock_training(out):
            finished = is_done(plan, out)
        if finished:
            return CheckpointManifest.read(out)
        launch(processes, tokens.folder, plan.config, out, on_metrics)
        return CheckpointManifest.read(out).as_built()
    device = choose_device(config.training.device)
    with join_group(device) as group, ExitStack() as lock:
        plan = group.from_main(plan_training(tokens, config, out.parent) if group.is_main else None)
        if group.is_main:
            lock.enter_context(lock_training(out))
        if group.from_main(group.is_main and is_done(plan, out)):
            return CheckpointManifest.read(out)
        prepare_cpu(group.local_size)
        with disk_errors(out), advice_on_memory(config, device, validating=False):
            run = Run(plan, tokens, out, on_metrics, device, group)
            run.train()
            if group.is_main:
                finish(run)
                seconds, best = sum(run.progress.seconds.values()), run.progress.best
                log.info(
                    "trained %s in %s; the best on validation is that of step %s, %.3f nats a token",
                    counted(run.progress.step, "step"), seconds_in_words(seconds), f"{best.step:,}", best.loss_nats,
                )  # fmt: skip
                log.info("%s", outlook(run.training, run.progress.step, plan.trunk_step, seconds))
        group.from_main(None)
    return CheckpointManifest.read(out).as_built()


class Run:
    """A training on its way, in one of its processes."""

    def __init__(
        self,
        plan: Plan,
        tokens: TokensManifest,
        out: Path,
        on_metrics: OnMetrics,
        device: torch.device,
        group: Group,
    ) -> None:
        self.config = config = plan.config
        self.training = training = config.training
        check_share(group.size, training)
        check_compiler(device, training.compile)
        self.plan, self.tokens, self.out, self.device, self.group = plan, tokens, out, device, group
        self.steps, self.pace = plan.steps, training.pace(plan.steps)
        self.state = new_state(plan, tokens, device)
        if group.is_main:
            self.prepare_folder()
        self.log = TrainingLog(out, on_metrics) if group.is_main else None
        self.restore()
        if group.is_main:
            self.check_disk()
        compiled = compiles(device, training.compile)
        order = BatchOrder(config.seed, load_stream(tokens, "train"), config.data.seq_length, training.random_offset)
        self.stepper = Stepper(config, self.state, order, device, group, compiled)
        self.validator = Validator(tokens, config, device, group, compiled)
        self.outcomes = Outcomes(training, order, out)
        self.watch = Stopwatch(self.progress.seconds)
        self.energy = EnergyMeter(self.progress.joules, device, group.local_size)
        self.parameters = sum(parameter.numel() for parameter in self.state.model.parameters())
        flops = flops_per_token(config.model, self.parameters, tokens.vocab_size, config.data.seq_length)
        peak = matrix_peak(device, training.precision) * group.size
        self.timer = Timer(self.progress)
        self.throughput = Throughput(flops, peak, self.stepper.tokens_per_step, self.progress)
        self.signals = DeferredSignals()
        self.saved_at = time.monotonic()

    @property
    def progress(self) -> Progress:
        return self.state.progress

    def prepare_folder(self) -> None:
        """Write the key, the origin, the configuration and the tokenizer, and log what a user should know."""
        config, tokens = self.config, self.tokens
        self.out.mkdir(exist_ok=True)
        write_atomic(self.out / KEY_FILE, self.plan.key + "\n")
        self.plan.origin(tokens).write(self.out)
        tokenizer = load_manifest_tokenizer(tokens)
        self.description_files = write_description(
            self.out, config.model, tokenizer, tokens.vocab_size, config.data.seq_length
        )
        if self.training.schedule == "wsd" and self.training.final_weight_decay is not None:
            log.info("this training cannot be made longer: %s", FINAL_WEIGHT_DECAY)
        if self.device.type == "cpu" and uses_bf16(self.device, self.training.precision) and not has_amx():
            log.warning("training.precision=bf16: these cores have no AMX, and may be faster in fp32")

    def check_disk(self) -> None:
        """Check that the disk has room for what the training will write, and note how much that is.

        Raises:
            StateNotSaved: it has not.
        """
        left, at_most = disk_bytes(self.state, self.training, self.pace, self.steps, self.tokens)
        there = bytes_there(self.out)
        self.disk_bytes = left - there
        check_room(self.out, at_most - there)

    def restore(self) -> None:
        """Go on from the furthest saved state, if there is one, in every process of the group."""
        saved = self.group.from_main(find_state(self.plan, self.out) if self.group.is_main else None)
        if saved is not None:
            restore_state(saved, self.state)
            if self.log is not None:
                restore_best(saved, self.out)
                self.log.take_over(saved.folder)

    def train(self) -> None:
        """Take the steps that are left."""
        progress, training = self.progress, self.training
        with Bar("train", self.steps, "step", progress.step, shown=self.group.is_main) as bar, self.signals:
            while True:
                at_the_end = progress.step == self.steps
                validation_due = progress.last_validated < progress.step and (
                    at_the_end or progress.step % self.pace.eval_every == 0
                )
                if progress.step and (validation_due or self.save_due()):
                    self.save()  # before validating: a training that is killed there repeats that from this state
                if progress.step == self.plan.trunk_step:
                    self.keep_trunk()
                if validation_due:
                    self.validate()
                if at_the_end or progress.should_stop_early(training.early_stopping_patience):
                    break
                self.step()
                is_logged = progress.step % self.pace.log_every == 0 or progress.step == self.steps
                bar.update(words=self.log_figures() if is_logged else None)
                self.estimate()

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

    def estimate(self) -> None:
        """Say what the rest of the training will take, as soon as its pace is known."""
        is_waited_for = self.device.type == "cpu" or not self.outcomes.unread
        step_seconds = self.timer.look(self.progress, is_waited_for)
        if step_seconds is not None and self.group.is_main:
            log.info(
                "%s; memory at the peak: %s; disk: %s more with the version",
                rest_in_words(self.progress, step_seconds, self.steps, self.pace),
                bytes_in_words(memory_peak_bytes(self.device)), bytes_in_words(max(0, self.disk_bytes)),
            )  # fmt: skip

    def save_due(self) -> bool:
        """Return whether so many steps or minutes have passed since a state was saved."""
        minutes = self.training.checkpoint_every_minutes
        if minutes is not None and time.monotonic() - self.saved_at > 60 * minutes:
            return True
        return self.progress.step % self.pace.checkpoint_every == 0

    def save(self) -> None:
        """Save a state, after reading what became of every step, so that it depends on none that is still under way."""
        self.read_steps()
        self.energy.update()
        if self.group.is_main:
            with self.watch("saving"):
                save_state(self.out, self.plan.key, self.state, self.training.keep_checkpoints)
        self.saved_at = time.monotonic()

    def keep_trunk(self) -> None:
        """Keep the state for a longer training."""
        self.read_steps()
        self.energy.update()
        if self.group.is_main:
            with self.watch("saving"):
                keep_trunk(self.out, self.plan.trunk_key, self.training, self.state)

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
        key=run.plan.key,
        tokens_key=run.tokens.key,
        config=config.model_dump(mode="json", include=RECORDED),
        initial_sha256=run.plan.initial_sha256,
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
