"""Several processes of this host that train one model: torchrun starts them, and their failure is told once."""

import _thread
import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from textgen.config import Config
from textgen.errors import InputError, WorkerFailed, from_text
from textgen.model.device import choose_device
from textgen.polling import every
from textgen.sections import TrainingConfig
from textgen.training.figures import OnMetrics, read_log
from textgen.training.group import check_share
from textgen.training.interrupt import in_main_thread

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

log = logging.getLogger(__name__)

LOG_POLL_SECONDS = 0.5
AGENT_POLL_SECONDS = 0.1
AGENT_PATIENCE_SECONDS = 30  # torch's: from its SIGTERM to the processes that a failed one leaves, to its SIGKILL
AGENT_VARIABLES = ("PYTHONPATH", "TORCHELASTIC_SIGNALS_TO_HANDLE")  # set for the agent, and by it
PROJECT = Path(__file__).parents[2]


def processes_to_start(training: TrainingConfig) -> int:
    """Return how many processes to start. 1 means no new process; under torchrun it is always 1.

    Raises:
        InputError: there are fewer GPUs than that, or fewer sequences in a batch.
    """
    if "WORLD_SIZE" in os.environ:
        return 1
    gpus = torch.cuda.device_count() if choose_device(training.device).type == "cuda" else 0
    processes = max(1, min(gpus, training.batch_size)) if training.devices == "auto" else training.devices
    if gpus and processes > gpus:
        raise InputError(f"training.devices={processes}: this machine has {gpus} GPUs")
    return check_share(processes, training)


def launch(processes: int, tokens: Path, config: Config, out: Path, on_metrics: OnMetrics) -> None:
    """Train in `processes` processes of this host, started by torchrun's agent, and wait for them.

    Raises:
        InputError, Failure: what one of them raised, after which the others were ended.
        WorkerFailed: one of them was killed or raised something else; the message names it.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    terminated = False
    with tempfile.TemporaryDirectory(prefix="textgen-") as folder:
        config_file = Path(folder) / "config.json"
        config_file.write_text(json.dumps(config.model_dump(mode="json"), ensure_ascii=False), "utf-8")
        agent = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            monitor_interval=AGENT_POLL_SECONDS,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            signals_to_handle="SIGTERM",  # SIGINT is a KeyboardInterrupt here, at which the agent sends them SIGTERM
        )
        arguments = ["-m", "textgen", "train", "--quiet", "--config", config_file, "--tokens", tokens, "--out", out]
        try:
            with _agent_surroundings(), _following(out, on_metrics):
                elastic_launch(agent, sys.executable)(*(str(argument) for argument in arguments))
        except SignalException:
            terminated = True
        except ChildFailedError as error:
            rank, failure = _first_failure(error.failures)
            raise _as_raised(failure, f"training process {rank} (of 0 to {processes - 1})") from error
    if terminated:
        signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt  # its handler returned


def _first_failure(failures: "dict[int, ProcessFailure]") -> "tuple[int, ProcessFailure]":
    """Return the first process that failed by itself and its rank: not one that lost a peer or that the agent ended."""

    def order(item: "tuple[int, ProcessFailure]") -> tuple[bool, bool, float]:
        _, failure = item
        interrupted = isinstance(failure.message, dict) and failure.message["message"].startswith("KeyboardInterrupt")
        seconds = failure.timestamp - AGENT_PATIENCE_SECONDS / 2  # a killed one is seen after those that miss it report
        if (report := Path(failure.error_file)).exists():
            seconds = report.stat().st_mtime  # what it says itself is in whole seconds
        return interrupted, failure.exitcode == -signal.SIGTERM, seconds

    return min(failures.items(), key=order)


def _as_raised(failure: "ProcessFailure", name: str) -> Exception:
    """Return the exception that process `name` ended with where its message is for the user, else a WorkerFailed."""
    if failure.exitcode < 0:
        return WorkerFailed(f"{name} was killed by {failure.signal_name()}; the same command continues the training")
    if isinstance(failure.message, str):
        return WorkerFailed(f"{name} ended with exit code {failure.exitcode} and no report; what it printed is above")
    said = failure.message["message"]
    if (error := from_text(said)) is not None:
        return error
    log.error("%s", failure.message["extraInfo"]["py_callstack"].rstrip())
    return WorkerFailed(f"{name} failed: {said}")


@contextmanager
def _agent_surroundings() -> Iterator[None]:
    """Let the workers find this package and the agent be quiet, and put back what it changes for good."""
    variables = {name: os.environ.get(name) for name in AGENT_VARIABLES}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT), variables["PYTHONPATH"]]))
    handler = signal.getsignal(signal.SIGTERM)
    elastic = logging.getLogger("torch.distributed.elastic")
    propagate, elastic.propagate = elastic.propagate, False  # what it reports of a failure, `launch` raises
    elastic.addHandler(silence := logging.NullHandler())
    try:
        yield
    finally:
        elastic.removeHandler(silence)
        elastic.propagate = propagate
        if in_main_thread():
            signal.signal(signal.SIGTERM, handler)
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _following(out: Path, on_metrics: OnMetrics) -> Iterator[None]:
    """Hand on the lines that the main worker adds to the training's log, as they come.

    What `on_metrics` raises ends the training as SIGTERM does, and is then raised.
    """
    seen, can_interrupt, has_ended = len(read_log(out)), in_main_thread(), False
    raised: list[Exception] = []

    def hand_on(at_the_end: bool) -> None:
        nonlocal seen
        if raised:
            return
        try:
            for line in read_log(out, seen):
                seen += 1
                on_metrics(int(line.pop("step")), line)
        except Exception as error:
            raised.append(error)
            log.error("the training ends: its figures could not be handed on: %s", error)
            if can_interrupt and not at_the_end and not has_ended:
                _thread.interrupt_main(signal.SIGTERM)

    try:
        with every(LOG_POLL_SECONDS, hand_on, "training-log"):
            try:
                yield
            finally:
                has_ended = True
    finally:
        if raised:
            raise raised[0]
