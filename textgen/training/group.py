"""The processes that train one model: who is who, what they agree on, and what they sum."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from textgen.errors import InputError
from textgen.sections import TrainingConfig

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Group:
    """The processes of a training, as one of them sees them; alone, it is a group of one."""

    rank: int = 0
    size: int = 1
    local_size: int = 1
    control: Any = None  # a gloo group: what the processes agree on needs no GPU
    parent: int | None = None  # the process of the agent

    @property
    def is_main(self) -> bool:
        """Return whether this process is the one that writes."""
        return self.rank == 0

    @property
    def is_orphaned(self) -> bool:
        """Return whether the agent was killed: then nobody would notice if the other processes failed, or stop them.

        Linux's parent-death signal (PR_SET_PDEATHSIG) fires when any thread of the agent ends, so it is not used.
        """
        return self.parent is not None and os.getppid() != self.parent

    def sum(self, tensor: Tensor) -> Tensor:
        """Return `tensor` summed over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is set in any of the processes."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.control)
        return bool(flags)

    def from_main(self, value: Any) -> Any:
        """Return the main process's `value`, for which all wait."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]


@contextmanager
def join_group(device: torch.device) -> Iterator[Group]:
    """Yield the group that torchrun started this process in, or a group of one."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield Group()
        return
    parent = os.getppid()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if not is_main_process():
        logging.getLogger("textgen").setLevel(logging.ERROR)  # what there is to say, the main process says
    control = dist.new_group(backend="gloo")
    yield Group(dist.get_rank(), size, int(os.environ["LOCAL_WORLD_SIZE"]), control, parent)
    # Not after an exception: the others must not see this process gone before it has reported what it failed of
    dist.destroy_process_group()


def is_main_process() -> bool:
    """Return whether this process is the first that torchrun started, or was not started by it."""
    return os.environ.get("RANK", "0") == "0"


def report_failures(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap `function`: under torchrun, write its exception to the agent's error file and exit without printing.

    Otherwise every process would print the same error, plus errors about lost peers.
    """
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return function
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    handler = get_error_handler()

    @wraps(function)
    def reporting(*args: P.args, **kwargs: P.kwargs) -> R:
        handler.initialize()
        try:
            return function(*args, **kwargs)
        except (Exception, KeyboardInterrupt) as error:
            handler.record_exception(error)
            raise SystemExit(1) from error

    return reporting


def check_share(processes: int, training: TrainingConfig) -> int:
    """Return `processes`, which share each batch.

    Raises:
        InputError: there are more of them than sequences in a batch.
    """
    if processes > training.batch_size:
        raise InputError(
            f"training.batch_size={training.batch_size} cannot be shared by {processes} processes (training.devices)"
        )
    return processes
