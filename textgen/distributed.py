"""Several processes that train one model: how they are started (torchrun), who is who, and what they sum."""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from textgen.config import Config, TrainingConfig
from textgen.device import choose_device
from textgen.files import Failure, InputError, write_atomic
from textgen.log import OnMetrics, read_log

log = logging.getLogger(__name__)

RUN_CONFIG_FILE = "run_config.json"  # what the workers read; config.json is the model's
LOG_POLL_SECONDS = 0.5
AGENT_POLL_SECONDS = 0.1
PROJECT = Path(__file__).parents[1]

P = ParamSpec("P")
R = TypeVar("R")


class WorkerFailed(Failure):
    """One of the processes of a training ended before its work was done."""


@dataclass(frozen=True)
class Group:
    """The processes of a training, as one of them sees them; alone, it is a group of one."""

    rank: int = 0
    size: int = 1
    local_size: int = 1
    control: Any = None  # a gloo group: what the processes agree on needs no GPU

    @property
    def is_main(self) -> bool:
        """Return whether this process is the one that writes."""
        return self.rank == 0

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
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), size, int(os.environ["LOCAL_WORLD_SIZE"]), dist.new_group(backend="gloo"))
    finally:
        dist.destroy_process_group()


def report_failures(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function`, which under torchrun leaves its exception where the agent of its process looks for it."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return function
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(function)


def processes_to_start(training: TrainingConfig) -> int:
    """Return how many processes `training.devices` asks this one to start: 1 is itself, and so it is under torchrun.

    Raises:
        InputError: there are fewer GPUs than that, or fewer sequences in a batch.
    """
    if "WORLD_SIZE" in os.environ:
        return 1
    gpus = torch.cuda.device_count() if choose_device(training.device).type == "cuda" else 0
    processes = max(1, gpus) if training.devices == "auto" else training.devices
    if gpus and processes > gpus:
        raise InputError(f"training.devices={processes}: this machine has {gpus} GPUs")
    return check_share(processes, training)


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


def launch(processes: int, tokens: Path, config: Config, out: Path, on_metrics: OnMetrics) -> None:
    """Train in `processes` processes of this host, started by torchrun's agent, and wait for them.

    Raises:
        WorkerFailed: one of them failed and the others were ended; the message is its own.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    out.mkdir(parents=True, exist_ok=True)
    config_file = out / RUN_CONFIG_FILE
    write_atomic(config_file, json.dumps(config.model_dump(mode="json"), indent=2) + "\n")
    arguments = ["-m", "textgen", "train", "--config", config_file, "--tokens", tokens, "--out", out]
    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=AGENT_POLL_SECONDS,
    )
    received: int | None = None
    with _agent_surroundings(), _following(out, on_metrics):
        try:
            elastic_launch(agent, sys.executable)(*(str(argument) for argument in arguments))
        except SignalException as stopped:
            received = stopped.sigval
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise WorkerFailed(f"training process {rank} of {processes} failed: {failure.message}") from error
    if received is not None:
        signal.raise_signal(received)


@contextmanager
def _agent_surroundings() -> Iterator[None]:
    """Let the workers find this package, and put back the signal handlers that the agent replaces for good."""
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(PROJECT) if path is None else f"{PROJECT}{os.pathsep}{path}"
    in_main_thread = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT) if in_main_thread else ()
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.pop("PYTHONPATH")
        if path is not None:
            os.environ["PYTHONPATH"] = path


@contextmanager
def _following(out: Path, on_metrics: OnMetrics) -> Iterator[None]:
    """Hand on the lines that the main worker adds to the training's log, as they come."""
    done, seen = threading.Event(), len(read_log(out))

    def follow() -> None:
        nonlocal seen
        finished = False
        while not finished:
            finished = done.wait(LOG_POLL_SECONDS)
            for line in read_log(out)[seen:]:
                seen += 1
                on_metrics(int(line.pop("step")), line)

    thread = threading.Thread(target=follow, name="training-log")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
