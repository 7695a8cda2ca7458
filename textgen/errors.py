"""The errors whose message is all that a user needs, how one is known again from its text, and the exit codes."""

import os
import re
import select
import sys
from collections.abc import Callable
from pathlib import Path

USER_MISTAKE = 2  # the exit code of an InputError, as argparse's
FAILURE = 1
INTERRUPTED = 130


class InputError(ValueError):
    """The user's mistake, in one line that names the value and the rule."""


class Failure(Exception):
    """Ends a command without a bug in our code. `transient`: a second try may succeed."""

    def __init__(self, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class Damaged(Failure):
    """A file is missing or is not what its manifest says."""


class SourceUnavailable(Failure):
    """The Hugging Face Hub did not give what was asked of it."""


class StorageUnavailable(Failure):
    """The remote storage, or the way to it, failed."""


class StateNotSaved(Failure):
    """The disk did not take what a training writes; the states saved before are as they were."""


class Diverged(Failure):
    """The loss or its gradient is no longer a finite number, step after step."""


class OutOfMemory(Failure):
    """A step or a validation does not fit; the message says what to lower, and by how much."""


class WorkerFailed(Failure):
    """One of the processes of a training ended before its work was done."""


class TrainingLost(Failure):
    """The run that trained ended before its work was done; another one continues it."""


class TrainingCancelled(Failure):
    """The run that trained was cancelled."""


class Refused(Failure):
    """A model may not be published: its losses are not finite, or stock transformers does not give the same."""


class PushFailed(Failure):
    """The Hugging Face Hub did not take a version."""


KINDS: tuple[type[InputError | Failure], ...] = (InputError, *Failure.__subclasses__())
_SAID = re.compile(rf"(?:^|exception:? )({'|'.join(kind.__name__ for kind in KINDS)}): (.*)", re.DOTALL)


def from_text(text: str) -> InputError | Failure | None:
    """Return the error that another process ended with, from `Kind: message`; None where it is none of KINDS.

    Prefect writes "Flow run encountered an exception: " before it.
    """
    if (said := _SAID.search(text)) is None:
        return None
    kinds = {kind.__name__: kind for kind in KINDS}
    return kinds[said[1]](said[2])


def system_error_in_words(error: OSError) -> str:
    """Return an error of the system in one line: the file and the reason."""
    from textgen.terminal import one_line

    if error.strerror is None:
        return one_line(f"{type(error).__name__}: {error}")
    return one_line(f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror)


def carry_out(command: Callable[[], None], interrupted: str = "the same command continues") -> int:
    """Run a command and return its exit code. InputError, Failure and OSError are printed as one line on stderr.

    `interrupted` is what Ctrl-C says after "interrupted".
    Where nobody reads stdout any longer, as after `| head`, the command ends there, in silence.
    """
    from textgen.terminal import printable

    _open_closed_streams()
    try:
        command()
        sys.stdout.flush()
    except InputError as error:
        print(printable(str(error)), file=sys.stderr)
        return USER_MISTAKE
    except Failure as error:
        print(printable(str(error)), file=sys.stderr)
        return FAILURE
    except OSError as error:  # of the system, about a file: a full disk, a permission, a name that is too long
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 0
        print(system_error_in_words(error), file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _open_closed_streams() -> None:
    """Open the standard streams that were closed, as by `<&-` in a shell: nothing is read there, and none kept."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  for as long as the process runs


def _nobody_reads() -> bool:
    """Return whether the reader of stdout is gone. If so, drop what is left to print: Python would print it at exit."""
    poll = select.poll()
    try:
        poll.register(stdout := sys.stdout.fileno(), 0)  # errors alone
    except OSError:  # it is no file, as in tests
        return False
    if not poll.poll(0):
        return False
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stdout)
    os.close(nothing)
    return True
