"""Training: one flat loop over the steps; once in a while it logs, saves its state and validates."""

import copy
import logging
import math
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from textgen.config import Config, TrainingConfig
from textgen.errors import Diverged, InputError
from textgen.evaluation.evaluate import score
from textgen.evaluation.protocols import blocks
from textgen.files import content_key, sha256_file, write_atomic
from textgen.model.device import autocast, choose_device, compiles, device_name, prepare_cpu, seed_everything, uses_bf16
from textgen.model.loss import NextTokenLoss
from textgen.model.pretrained import WEIGHTS_FILE, write_description, write_weights
from textgen.model.transformer import LanguageModel
from textgen.text.tokens import TokensManifest, check_length, load_manifest_tokenizer, load_stream
from textgen.training.batches import BatchOrder
from textgen.training.checkpoint import KEY_FILE, CheckpointManifest, Validation
from textgen.training.energy import EnergyMeter
from textgen.training.environment import read_environment
from textgen.training.figures import OnMetrics, TrainingLog
from textgen.training.group import Group, check_share, join_group
from textgen.training.interrupt import DeferredSignals
from textgen.training.launch import launch, processes_to_start
from textgen.training.meters import Speed, Stopwatch, flops_per_token, matrix_peak, memory_peak_bytes
from textgen.training.optim import build_optimizers, set_schedule, take_step
from textgen.training.out_of_memory import advice_on_memory
from textgen.training.state import (
    Progress,
    Sum,
    TrainingState,
    disk_errors,
    is_finished,
    lock_training,
    newest_state,
    restore_best,
    restore_state,
    save_state,
)
from textgen.training.warm_start import initial_sha256, start_from

log = logging.getLogger(__name__)

TRAIN_VERSION = 5  # of the algorithm; a change makes every training key new
# What may change between two parts of one training: how it is run and watched, not what it computes. Of the sequences
# in a step their number counts, and not how they are shared out; of the weights to start from, their sha256.
NOT_IN_KEY = {
    "device", "devices", "compile", "log_every", "checkpoint_every", "checkpoint_every_minutes", "keep_checkpoints",
    "max_bad_steps", "init_from", "batch_size", "gradient_accumulation_steps",
}  # fmt: skip


def train_key(tokens: TokensManifest, config: Config) -> str:
    """Return the key of a training: the algorithm, the tokens and every setting that the weights depend on."""
    training = {name: value for name, value in config.training.key_part().items() if name not in NOT_IN_KEY}
    parts = {"seed": config.seed, "model": config.model.key_part(), "training": training}
    sequences = config.training.sequences_per_step
    return content_key(TRAIN_VERSION, tokens.key, config.data.seq_length, sequences, parts, initial_sha256(config))


def total_steps(training: TrainingConfig, blocks_in_train: int) -> int:
    """Return the number of optimizer steps: `max_steps`, or as many as `epochs` passes over the blocks take."""
    if training.max_steps is not None:
        return training.max_steps
    assert training.epochs is not None
    return math.ceil(training.epochs * blocks_in_train / training.sequences_per_step)


def train(tokens: TokensManifest, config: Config, out: Path, on_metrics: OnMetrics) -> CheckpointManifest:
    """Train a model on `tokens` in the folder `out` and return its manifest.

    A training that was interrupted there continues; one that is finished and verifies returns at once. `on_metrics`
    is called with a step and its figures, in the process that called `train`. SIGINT and SIGTERM have their effect
    before the next backward pass or in a validation, when the state is saved.

    Raises:
        InputError: a split is shorter than `data.seq_length`, the devices are absent, `out` holds another training, or
            the model to start from does not fit.
        Diverged: `max_bad_steps` steps in a row were not finite.
        OutOfMemory: a step or a validation does not fit in memory.
        StateNotSaved: the disk did not take the state.
        WorkerFailed: one of several processes failed.
    """
    check_length(tokens, config.data.seq_length)
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
                run.manifest().write(out)
        group.from_main(None)
    return CheckpointManifest.read(out).as_built()


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
        self.key, self.tokens, self.config, self.out = key, tokens, config, out
        self.training, self.device, self.group = config.training, device, group
        check_share(group.size, self.training)
        seq_length = config.data.seq_length
        self.order = BatchOrder(config.seed, load_stream(tokens, "train"), seq_length, self.training.random_offset)
        self.validation_N = load_stream(tokens, "validation")
        self.windows = list(blocks(len(self.validation_N), seq_length, limit=self.training.eval_blocks))
        self.steps = total_steps(self.training, self.order.blocks)
        if self.training.warmup_steps >= self.steps:
            raise InputError(
                f"training.warmup_steps={self.training.warmup_steps} is not below the {self.steps} steps "
                f"that training.epochs={self.training.epochs} makes"
            )
        self.tokens_per_step = self.training.sequences_per_step * seq_length

        seed_everything(config.seed)
        model = LanguageModel(config.model, tokens.vocab_size)
        self.initial_sha256 = initial_sha256(config)
        start_from(config, model, tokens)
        model.to(device)
        averaged = copy.deepcopy(model).eval() if self.training.ema_decay is not None else None
        self.state = TrainingState(model, averaged, build_optimizers(model, self.training))
        if group.is_main:
            out.mkdir(exist_ok=True)
            write_atomic(out / KEY_FILE, self.key + "\n")
        self.log = TrainingLog(out, on_metrics) if group.is_main else None
        self._restore()
        self.compiles = compiles(device, self.training.compile)
        self.loss = NextTokenLoss(model, self.compiles)
        self.replica = DistributedDataParallel(self.loss, gradient_as_bucket_view=True) if group.size > 1 else self.loss
        if group.is_main:
            self.description_files = write_description(
                out, config.model, load_manifest_tokenizer(tokens), tokens.vocab_size, seq_length
            )

        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.flops_per_token = flops_per_token(config.model, self.parameters, tokens.vocab_size, seq_length)
        self.peak_flops = matrix_peak(device, self.training.precision) * group.size
        self.unread: list[tuple[int, Tensor]] = []  # steps and their [loss, gradient norm, is bad], on the device
        self.learning_rate = 0.0
        self.logged = self.progress.step, self.progress.seconds.get("train", 0.0)

    @property
    def progress(self) -> Progress:
        return self.state.progress

    @property
    def evaluated(self) -> LanguageModel:
        """The weights that are validated and kept: the averaged ones where there are any."""
        return self.state.averaged or self.state.model

    def _restore(self) -> None:
        newest = self.group.from_main(newest_state(self.out, self.key) if self.group.is_main else None)
        if newest is not None:
            restore_state(newest, self.state)
            log.info("continuing from step %d", self.progress.step)
            if self.group.is_main:
                restore_best(newest, self.out)
        self.watch = Stopwatch(self.progress.seconds)
        self.energy = EnergyMeter(self.progress.joules, self.device, self.group.local_size)

    def train(self) -> None:
        """Take the steps that are left."""
        progress, training = self.progress, self.training
        self.saved_at = time.monotonic()
        bar = tqdm(
            total=self.steps, initial=progress.step, desc="train", unit="step",
            disable=None if self.group.is_main else True,
        )  # fmt: skip
        with bar, DeferredSignals() as self.signals:
            while True:
                at_the_end = progress.step == self.steps
                validation_due = progress.last_validated < progress.step and (
                    at_the_end or progress.step % training.eval_every == 0
                )
                if progress.step and (validation_due or self.save_due()):
                    self.save()
                if validation_due:
                    self.validate()
                if at_the_end or self.stopped_early:
                    break
                self.step()
                bar.update()
                if progress.step % training.log_every == 0 or progress.step == self.steps:
                    bar.set_postfix_str(self.log_figures())

    def step(self) -> None:
        """Take one optimizer step, or refuse it if its loss or gradient is not finite."""
        progress, training, micro_steps = self.progress, self.training, self.training.gradient_accumulation_steps
        self.learning_rate = set_schedule(self.state.optimizers, progress.step, self.steps, training)
        nats = torch.zeros((), device=self.device)
        with self.watch("train"):
            for micro_step in range(micro_steps):
                seed_everything(self.config.seed, progress.step, micro_step, self.group.rank)
                x_BT, y_BT = self.batch((progress.step * micro_steps + micro_step) * training.batch_size)
                last = micro_step == micro_steps - 1
                with (
                    nullcontext()
                    if last or not isinstance(self.replica, DistributedDataParallel)
                    else self.replica.no_sync()
                ):
                    with autocast(self.device, training.precision):
                        loss = self.replica(x_BT, y_BT)
                    # Here, as the first forward and the first backward may each compile for seconds
                    if self.group.any(self.signals.pending is not None or self.group.is_orphaned):
                        self.leave()
                    # DistributedDataParallel takes the mean over the processes: the sum over the batch is wanted
                    (loss * self.group.size / self.tokens_per_step).backward()
                nats += loss.detach()
            loss = self.group.sum(nats) / self.tokens_per_step
            grad_norm = clip_grad_norm_(self.state.model.parameters(), training.max_grad_norm)
            is_bad = (torch.isfinite(loss) & torch.isfinite(grad_norm)).logical_not().float()
            take_step(self.state.optimizers, is_bad)
            self.update_average()
        self.unread.append((progress.step, torch.stack((loss, grad_norm, is_bad))))
        progress.step += 1
        if len(self.unread) == training.max_bad_steps:
            self.read_steps()

    def batch(self, first: int) -> tuple[Tensor, Tensor]:
        """Return this process's share [B, T] of the micro-batch that starts with sample `first`, on the device."""
        mine = slice(self.group.rank, None, self.group.size)
        x_BT, y_BT = (ids_BT[mine] for ids_BT in self.order.take(first, self.training.batch_size))
        if self.device.type == "cuda":
            x_BT, y_BT = x_BT.pin_memory(), y_BT.pin_memory()
        return x_BT.to(self.device, non_blocking=True), y_BT.to(self.device, non_blocking=True)

    def update_average(self) -> None:
        """Move the averaged weights towards the weights, after a refused step too; at the first they are equal."""
        if self.state.averaged is not None and self.training.ema_decay is not None:
            decay = self.training.ema_decay if self.progress.step else 0.0
            get_ema_multi_avg_fn(decay)(
                list(self.state.averaged.parameters()), list(self.state.model.parameters()), self.progress.step
            )

    def read_steps(self) -> None:
        """Read from the device what became of the steps since the last reading; this waits for it.

        Raises:
            Diverged: `max_bad_steps` of them in a row were refused.
        """
        if not self.unread:
            return
        with self.watch("train"):
            read = torch.stack([figures for _, figures in self.unread]).tolist()
        for (step, _), (loss_nats, grad_norm, is_bad) in zip(self.unread, read, strict=True):
            if not is_bad:
                self.progress.bad_steps_in_a_row = 0
                self.progress.since_log.add(loss_nats)
                self.progress.since_validation.add(loss_nats)
                self.progress.grad_norm = grad_norm
                continue
            self.progress.bad_steps += 1
            self.progress.bad_steps_in_a_row += 1
            first = step * self.training.sequences_per_step
            epoch, start = self.order.place(first)
            log.warning(
                "step %d refused: loss %g, gradient norm %g; its batch starts with sample %d (epoch %d, token %d)",
                step + 1, loss_nats, grad_norm, first, epoch, start,
            )  # fmt: skip
            if self.progress.bad_steps_in_a_row >= self.training.max_bad_steps:
                raise Diverged(
                    f"{self.progress.bad_steps_in_a_row} steps in a row, up to step {step + 1}, had a loss or gradient "
                    f"that is not finite (training.max_bad_steps={self.training.max_bad_steps}); "
                    f"lower training.learning_rate={self.training.learning_rate}, for a new training. "
                    f"The states saved before are as they were, in {self.out}"
                )
        self.unread.clear()

    def log_figures(self) -> str:
        """Log the figures of the steps since the last time, and return the most important ones in words."""
        self.read_steps()
        progress, seconds = self.progress, self.watch.seconds
        step_before, seconds_before = self.logged
        tokens_per_second = (progress.step - step_before) * self.tokens_per_step / (seconds["train"] - seconds_before)
        self.logged = progress.step, seconds["train"]
        there = {
            "train/loss_nats": progress.since_log.mean,
            "train/grad_norm": progress.grad_norm,
            "train/learning_rate": self.learning_rate,
            "train/tokens": progress.step * self.tokens_per_step,
            "train/tokens_per_second": tokens_per_second,
            "train/mfu": self.mfu(tokens_per_second),
            "train/bad_steps": progress.bad_steps,
            "train/memory_peak_bytes": memory_peak_bytes(self.device),
            **{f"seconds/{phase}": total for phase, total in seconds.items()},
        }
        figures = {name: float(figure) for name, figure in there.items() if figure is not None}
        progress.since_log, progress.grad_norm = Sum(), None
        if self.log is not None:
            self.log.add(progress.step, figures)
        return f"loss {figures.get('train/loss_nats', math.nan):.3f}, {tokens_per_second:,.0f} tokens/s"

    def mfu(self, tokens_per_second: float) -> float:
        """Return the share of the devices' matrix peak that the model's own arithmetic reaches at that speed."""
        return tokens_per_second * self.flops_per_token / self.peak_flops

    def save_due(self) -> bool:
        """Return whether so many steps or minutes have passed since a state was saved."""
        minutes = self.training.checkpoint_every_minutes
        if minutes is not None and time.monotonic() - self.saved_at > 60 * minutes:
            return True
        return self.progress.step % self.training.checkpoint_every == 0

    def save(self) -> None:
        """Save the state."""
        self.read_steps()
        self.energy.update()
        if self.group.is_main:
            with self.watch("saving"):
                save_state(self.out, self.key, self.state, self.training.keep_checkpoints)
        self.saved_at = time.monotonic()

    def validate(self) -> None:
        """Measure the weights on the validation windows; keep them if they are the best so far."""
        progress, model = self.progress, self.evaluated
        with self.watch("validation"), advice_on_memory(self.config, self.device, validating=True):
            model.eval()
            # The compiled blocks are those of a training's batches: others would be compiled anew
            eager = torch.compiler.set_stance("force_eager") if self.compiles else nullcontext()
            with eager, autocast(self.device, self.training.precision):
                nats, scored = score(
                    model,
                    self.validation_N,
                    self.windows[self.group.rank :: self.group.size],
                    self.config.evaluation.batch_size,
                    between_batches=self.deliver_signal,
                )
            self.state.model.train()
            nats, scored = self.group.sum(
                torch.tensor([nats, scored], dtype=torch.float64, device=self.device)
            ).tolist()
            validation = Validation(
                step=progress.step,
                tokens=progress.step * self.tokens_per_step,
                train_loss_nats=progress.since_validation.mean,
                loss_nats=nats / scored,
            )
            progress.curve.append(validation)
            progress.since_validation = Sum()
            if self.log is not None:
                if progress.best is validation:
                    write_weights(model, self.out / WEIGHTS_FILE)
                self.log.add(progress.step, {"validation/loss_nats": validation.loss_nats})

    @property
    def stopped_early(self) -> bool:
        """Return whether the validations since the best one have used up the patience."""
        patience = self.training.early_stopping_patience
        return patience is not None and bool(self.progress.curve) and self.progress.validations_since_best >= patience

    def leave(self) -> None:
        """Save the state and let the signal have its effect: in the step now begun nothing has moved yet."""
        self.save()
        log.info("stopping at step %d; its state is saved", self.progress.step)
        self.deliver_signal()
        raise KeyboardInterrupt  # the signal came to another process of the group, or to the one that started it

    def deliver_signal(self) -> None:
        """Let a signal that came have its effect.

        Raises:
            KeyboardInterrupt: its handler returned, and the training ends all the same.
        """
        if self.signals.pending is not None:
            self.signals.deliver()
            raise KeyboardInterrupt

    def manifest(self) -> CheckpointManifest:
        """Return what there is to know of the finished training."""
        self.energy.update()
        progress, seconds = self.progress, self.progress.seconds
        tokens_per_second = progress.step * self.tokens_per_step / seconds["train"]
        return CheckpointManifest(
            key=self.key,
            tokens_key=self.tokens.key,
            config=self.config.model_dump(mode="json", include={"seed", "data", "tokenizer", "model", "training"}),
            initial_sha256=self.initial_sha256,
            device=device_name(self.device),
            devices=self.group.size,
            precision="bf16" if uses_bf16(self.device, self.training.precision) else "fp32",
            environment=read_environment(),
            parameters=self.parameters,
            steps=progress.step,
            stopped_early=progress.step < self.steps,
            bad_steps=progress.bad_steps,
            best_step=progress.best.step,
            tokens_trained=progress.step * self.tokens_per_step,
            train_seconds=sum(seconds.values()),
            speed=Speed(
                tokens_per_second=tokens_per_second,
                flops_per_token=self.flops_per_token,
                peak_flops=self.peak_flops,
                mfu=self.mfu(tokens_per_second),
                memory_peak_bytes=memory_peak_bytes(self.device),
                seconds=seconds,
                joules=progress.joules,
            ),
            curve=progress.curve,
            sha256={name: sha256_file(self.out / name) for name in [WEIGHTS_FILE, *self.description_files]},
        )
