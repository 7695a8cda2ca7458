"""The Hugging Face Hub: what it refuses and whether that can pass, and the commit that a name was first resolved to."""

import json
import re
from collections.abc import Callable
from json import JSONDecodeError
from pathlib import Path
from typing import TypeVar

from textgen.errors import Damaged, InputError, SourceUnavailable
from textgen.files import read_json, set_aside, write_atomic
from textgen.terminal import brief

COMMIT = re.compile(r"[0-9a-f]{40}")
PIN_FILE = "revisions.json"
TOO_MANY_REQUESTS = 429
SERVER_ERROR = 500
ANSWER_SECONDS = 5.0  # the client itself would wait for a commit for ever

T = TypeVar("T")


def ask_hub(name: str, ways_on: str, ask: Callable[[], T]) -> T:
    """Return `ask()`, which asks the Hub for the repository `name` and shows no bars of the Hub's client.

    Raises:
        SourceUnavailable: the Hub, or the way to it, failed; `ways_on` ends its message.
        InputError: the repository has no such configuration.
    """
    show_no_bars()
    try:
        return ask()
    except Exception as error:
        if isinstance(error, ValueError) and not isinstance(error, OSError | JSONDecodeError):  # no such configuration
            raise InputError(f"{name}: {' '.join(str(error).split())}") from error
        if (found := find_cause(error)) is None:
            raise
        cause, transient = found
        raise SourceUnavailable(
            f"{name} could not be had from the Hugging Face Hub ({cause_in_words(cause)}). Two ways on: {ways_on}",
            transient,
        ) from error


def show_no_bars() -> None:
    """Have the Hub's client show no progress bars in this process."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()


def cause_in_words(cause: BaseException) -> str:
    """Return an exception's name and message in a line, without what helps the Hub alone."""
    reason = re.split(r" \(Request ID| For more information check:", " ".join(str(cause).split()))[0]
    return f"{type(cause).__name__}: {reason}"


def find_cause(error: Exception) -> tuple[BaseException, bool] | None:
    """Return the exception that says why the Hub did not give what was asked, and whether that can pass.

    It may lie under others: `datasets` makes a FileNotFoundError of a 404, of a 503 and of a 429.
    None: it was not the Hub, but a full disk or a mistake in the code.
    """
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import FileNotFoundDatasetsError
    from huggingface_hub.errors import OfflineModeIsEnabled

    from_the_hub = isinstance(error, OSError | JSONDecodeError) or type(error).__module__.startswith("httpx")
    if not from_the_hub or getattr(error, "errno", None) is not None:  # the system's own errors have a number
        return None
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return cause, status == TOO_MANY_REQUESTS or status >= SERVER_ERROR
        if isinstance(cause, OfflineModeIsEnabled | FileNotFoundDatasetsError | EmptyDatasetError):
            return cause, False
        if OfflineModeIsEnabled.__name__ in str(cause):  # `datasets` drops the exception and keeps its name
            return cause, False
        if type(cause).__module__.startswith("httpx"):
            return cause, True  # no such host, refused, cut, timed out
        cause = cause.__cause__ or cause.__context__
    return error, True


def pinned(folder: Path, revision: str | None) -> str | None:
    """Return the commit that `revision` (None: the default branch) was resolved to at its first fetch, if it was."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    return _read_pins(folder).get(revision or "")


def pin(folder: Path, revision: str | None, commit: str) -> None:
    """Have `pinned` answer `commit` for `revision` from now on."""
    pins = _read_pins(folder)
    if pins.get(revision or "") != commit:
        write_atomic(folder / PIN_FILE, json.dumps({**pins, revision or "": commit}, indent=2) + "\n")


def _read_pins(folder: Path) -> dict[str, str]:
    file = folder / PIN_FILE
    if not file.exists():
        return {}
    try:
        pins = read_json(file)
        for commit in pins.values():  # which names a folder
            if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
                raise Damaged(f"{file} is damaged: {brief(commit)} is no commit")
    except Damaged as damage:
        set_aside(file, damage)
        return {}
    return pins
