"""Checks Prefect's settings before it is imported: it reads them then, and hangs if it cannot write its folder."""

import io
import os
import sys
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from textgen.errors import InputError, carry_out
from textgen.terminal import brief, one_line

HOME, SERVER = "PREFECT_HOME", "PREFECT_API_URL"
ADDRESSES = {SERVER: "http://127.0.0.1:4200/api", "HF_ENDPOINT": "https://huggingface.co"}  # with examples
DEFAULT_HOME = "~/.prefect"


def check_settings() -> None:
    """End the process with one line if a setting of Prefect in the environment cannot be used."""
    if code := carry_out(_check):
        sys.exit(code)


def _check() -> None:
    for name in (HOME, *ADDRESSES):
        if os.environ.get(name) == "":  # Prefect would take it for an address, or for the working folder
            del os.environ[name]
    check_home(Path(os.environ.get(HOME, DEFAULT_HOME)).expanduser(), has_server=SERVER in os.environ)
    for name, example in ADDRESSES.items():
        if name in os.environ:
            check_address(name, os.environ[name], example)
    printed = io.StringIO()  # Prefect prints what is wrong, in several lines, before it raises it
    try:
        with redirect_stderr(printed):
            import prefect.context  # noqa: F401  reads the settings and the profiles
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InputError(f"Prefect's {error.title}: {name}={brief(first['input'])}: {one_line(first['msg'])}") from None
    except ValueError as error:  # profiles that are not TOML
        raise InputError(f"Prefect's settings: {one_line(error)}") from None
    sys.stderr.write(printed.getvalue())


def check_home(home: Path, has_server: bool) -> None:
    """Check that Prefect's folder can be written, which a temporary server needs.

    Raises:
        InputError: it cannot.
    """
    try:
        if has_server:
            home.exists()  # raises where Prefect, which looks for its profiles there, would
            return
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise InputError(f"{HOME}={brief(str(home))}: the folder cannot be written: {error.strerror}") from None


def check_address(name: str, url: str, example: str) -> None:
    """Check that a server's address is one.

    Raises:
        InputError: it is not.
    """
    try:
        address = urlsplit(url)
        is_address = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:  # brackets that are not closed, a port that is no number
        is_address = False
    if not is_address:
        raise InputError(f"{name}={brief(url)}: not the address of a server, as {example}")
