"""The Hugging Face Hub: what it refuses and whether that can pass, and the commit that a name was first resolved to."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from textgen.files import InputError, write_atomic

COMMIT = re.compile(r"[0-9a-f]{40}")
PIN_FILE = "revisions.json"
TOO_MANY_REQUESTS = 429
SERVER_ERROR = 500

T = TypeVar("T")


class SourceUnavailable(Exception):
    """The Hub did not give what was asked of it. `transient`: it may at a second try."""

    def __init__(self, message: str, transient: bool) -> None:
        super().__init__(message, transient)
        self.transient = transient

    def __str__(self) -> str:
        return self.args[0]


def ask_hub(name: str, ways_on: str, ask: Callable[[], T]) -> T:
    """Return `ask()`, which asks the Hub for the repository `name`.

    Raises:
        SourceUnavailable: the Hub, or the way to it, failed; `ways_on` ends its message.
        InputError: the repository has no such configuration.
    """
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        return ask()
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            transient = status == TOO_MANY_REQUESTS or status >= SERVER_ERROR
        elif isinstance(error, DatasetNotFoundError | OfflineModeIsEnabled) or "offline mode" in str(error).lower():
            transient = False
        elif isinstance(error, OSError) or type(error).__module__.startswith("httpx"):
            transient = True  # cut, refused or timed out; `datasets` turns a 503 and a 429 into FileNotFoundError
        elif isinstance(error, ValueError):  # an unknown configuration
            raise InputError(f"{name}: {' '.join(str(error).split())}") from error
        else:
            raise
        reason = " ".join(str(error).split()).split(" (Request ID")[0]
        raise SourceUnavailable(
            f"{name} could not be had from the Hugging Face Hub ({type(error).__name__}: {reason}). "
            f"Two ways on: {ways_on}",
            transient,
        ) from error


def pinned(folder: Path, revision: str | None) -> str | None:
    """Return the commit that `revision` (None: the default branch) was resolved to at its first fetch, if it was."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    file = folder / PIN_FILE
    return json.loads(file.read_bytes()).get(revision or "") if file.exists() else None


def pin(folder: Path, revision: str | None, commit: str) -> None:
    """Have `pinned` answer `commit` for `revision` from now on."""
    file = folder / PIN_FILE
    pins = json.loads(file.read_bytes()) if file.exists() else {}
    if pins.get(revision or "") != commit:
        write_atomic(file, json.dumps({**pins, revision or "": commit}, indent=2) + "\n")
