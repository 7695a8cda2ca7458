"""One optimizer step: forward, backward, clip, move; a step that is not finite is refused before anything moves."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn

from textgen.config import Config
from textgen.errors import Diverged
from textgen.model.device import autocast, seed_everything
from textgen.model.loss import NextTokenLoss
from textgen.sections import TrainingConfig
from textgen.training.batches import BatchOrder
from textgen.training.group import Group
from textgen.training.optim import set_schedule, take_step
from textgen.training.progress import Progress
from textgen.training.state import TrainingState

log = logging.getLogger(__name__)


class Stepper:
    """Takes the steps of a training, of which this process computes its share."""

    def __init__(
        self,
        config: Config,
        state: TrainingState,
        order: BatchOrder,
        device: torch.device,
        group: Group,
        compiled: bool,
    ) -> None:
        self.config, self.training, self.state = config, config.training, state
        self.order, self.device, self.group = order, device, group
        loss = NextTokenLoss(state.model, compiled)
        self.replica = DistributedDataParallel(loss, gradient_as_bucket_view=True) if group.size > 1 else loss
        self.tokens_per_step = self.training.sequences_per_step * config.data.seq_length
        self.learning_rate = 0.0

    def take(self, step: int, steps: int, before_backward: Callable[[], None]) -> Tensor:
        """Take step number `step` of `steps`; return its [loss in nats, gradient norm, whether it was refused].

        `before_backward` is called when the forward pass is done and nothing has moved; it may raise. The result is on
        the device, and is not waited for.
        """
        training, micro_steps = self.training, self.training.gradient_accumulation_steps
        self.learning_rate = set_schedule(self.state.optimizers, step, steps, training)
        nats = torch.zeros((), device=self.device)
        for micro_step in range(micro_steps):
            seed_everything(self.config.seed, step, micro_step, self.group.rank)
            x_BT, y_BT = self.batch((step * micro_steps + micro_step) * training.batch_size)
            with self._gradients_stay_here(micro_step < micro_steps - 1):
                with autocast(self.device, training.precision):
                    loss = self.replica(x_BT, y_BT)
                # Here, as the first forward and the first backward may each compile for seconds
                before_backward()
                # DistributedDataParallel takes the mean over the processes: the sum over the batch is wanted
                (loss * self.group.size / self.tokens_per_step).backward()
            nats += loss.detach()
        loss = self.group.sum(nats) / self.tokens_per_step
        grad_norm = clip_grad_norm_(self.state.model.parameters(), training.max_grad_norm)
        is_bad = (torch.isfinite(loss) & torch.isfinite(grad_norm)).logical_not().float()
        take_step(self.state.optimizers, is_bad)
        self._update_average(step)
        return torch.stack((loss, grad_norm, is_bad))

    def batch(self, first: int) -> tuple[Tensor, Tensor]:
        """Return this process's share [B, T] of the micro-batch that starts with sample `first`, on the device."""
        mine = slice(self.group.rank, None, self.group.size)
        x_BT, y_BT = (ids_BT[mine] for ids_BT in self.order.take(first, self.training.batch_size))
        if self.device.type == "cuda":
            x_BT, y_BT = x_BT.pin_memory(), y_BT.pin_memory()
        return x_BT.to(self.device, non_blocking=True), y_BT.to(self.device, non_blocking=True)

    def _gradients_stay_here(self, stay: bool) -> AbstractContextManager[None]:
        """Return a block in which the processes do not sum their gradients, if they are to `stay`."""
        return self.replica.no_sync() if stay and isinstance(self.replica, DistributedDataParallel) else nullcontext()

    def _update_average(self, step: int) -> None:
        """Update the averaged weights, also after a refused step. The first step copies the weights."""
        if self.state.averaged is not None and self.training.ema_decay is not None:
            decay = self.training.ema_decay if step else 0.0
            get_ema_multi_avg_fn(decay)(
                list(self.state.averaged.parameters()), list(self.state.model.parameters()), step
            )


class Outcomes:
    """What became of the steps: kept on the device until somebody reads it, as reading waits for the device."""

    def __init__(self, training: TrainingConfig, order: BatchOrder, out: Path) -> None:
        self.training, self.order, self.out = training, order, out
        self.unread: list[tuple[int, Tensor]] = []  # steps and their [loss, gradient norm, was refused]

    def add(self, step: int, outcome: Tensor) -> None:
        """Keep what `Stepper.take` returned."""
        self.unread.append((step, outcome))

    @property
    def must_be_read(self) -> bool:
        """Return whether so many are unread that, if all were refused, the training must end."""
        return len(self.unread) == self.training.max_bad_steps

    def read(self, progress: Progress) -> None:
        """Add the outcomes to the progress, and name the steps that were refused.

        Raises:
            Diverged: `max_bad_steps` of them in a row were refused.
        """
        read = torch.stack([outcome for _, outcome in self.unread]).tolist()
        for (step, _), (loss_nats, grad_norm, was_refused) in zip(self.unread, read, strict=True):
            if not was_refused:
                progress.bad_steps_in_a_row = 0
                progress.since_log.add(loss_nats)
                progress.since_validation.add(loss_nats)
                progress.grad_norm = grad_norm
                continue
            progress.bad_steps += 1
            progress.bad_steps_in_a_row += 1
            first = step * self.training.sequences_per_step
            epoch, start = self.order.place(first)
            log.warning(
                "step %d refused: loss %g, gradient norm %g; its batch starts with sample %d (epoch %d, token %d)",
                step + 1, loss_nats, grad_norm, first, epoch, start,
            )  # fmt: skip
            if progress.bad_steps_in_a_row >= self.training.max_bad_steps:
                raise Diverged(
                    f"{progress.bad_steps_in_a_row} steps in a row, up to step {step + 1}, had a loss or gradient "
                    f"that is not finite (training.max_bad_steps={self.training.max_bad_steps}); "
                    f"lower training.learning_rate={self.training.learning_rate}, for a new training. "
                    f"The states saved before are as they were, in {self.out}"
                )
        self.unread.clear()
