"""`python -m textgen` in a forked process that is killed by its parent or before a chosen change to a file.

The fork server imports this file once: a command then starts in a tenth of a second, not in the seconds of torch.
"""

import gc
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch._inductor

import textgen.__main__
import textgen.training.launch
import textgen.training.train
from textgen.sections import TrainingConfig
from textgen.training.environment import read_environment
from textgen.training.meters import matrix_peak

CHANGES = {
    "open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree", "tempfile.mkdtemp",
    "tempfile.mkstemp",
}  # fmt: skip
FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

torch.set_num_threads(1)  # a fork takes no thread along but its own
matrix_peak(torch.device("cpu"), TrainingConfig().precision)  # measured here, not by each training
read_environment()
gc.freeze()  # or a fork's first collection copies every page
os.fsync = lambda descriptor: None  # a kill loses nothing that was written, as a loss of power does


def command(arguments: list[str], output: Path, kill_at: int | None, since: str) -> None:
    """Run a command of `textgen`, append its output to a file and leave with its exit code.

    With `kill_at` the process is killed before that many changes to files in its `--out`, counted (the first is 1)
    from the one that has `since` in its path.
    """
    assert threading.active_count() == torch.get_num_threads() == 1
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if kill_at is not None:
        kill_before(kill_at, since, Path(arguments[arguments.index("--out") + 1]))
    sys.exit(textgen.__main__.main(arguments))


def kill_before(change: int, since: str, out: Path) -> None:
    """Have this process killed before a change to a file in `out`."""
    left, begun, fsync = change, False, os.fsync

    def count(path: str) -> None:
        nonlocal left, begun
        begun = begun or since in path
        left -= begun
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if event not in CHANGES or (event == "open" and not details[2] & FOR_WRITING):
            return
        path = str(details[0])  # or a descriptor, or a name in a folder that is being deleted
        if not path.startswith("/") or path.startswith(f"{out}/"):
            count(path)

    def counted_fsync(descriptor: int) -> None:
        count("")
        fsync(descriptor)

    os.fsync = counted_fsync  # has no audit event
    sys.addaudithook(hook)
