"""Secrets reach no log and no state of a run: the environment's keys, tokens and passwords are blotted out.

Nor does a control character of foreign text reach a log: Prefect's own handlers print them in a terminal. And an error
whose message is all that a user needs is logged without a traceback.
"""

import logging
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from textgen.errors import Failure, InputError
from textgen.terminal import printable

SECRET_NAME = re.compile(
    r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|CREDENTIALS|AUTH_STRING|CONNECTION_STRING|NOTIFY_URL)(?:$|_)"
    r"|PASSWORD|PASSWD|PASSPHRASE",
    re.IGNORECASE,
)
URL_PASSWORD = re.compile(r"://[^/@:]*:([^/@]+)@")
USER_PASSWORD = re.compile(r"AUTH_STRING$", re.IGNORECASE)  # names of values that are USER:PASSWORD
SHORTEST_SECRET = 8  # characters: shorter values are words that logs need
BLOT = "********"


def redact(text: str) -> str:
    """Return `text` without the secrets of the environment as it is now."""
    secrets = set()
    for name, value in os.environ.items():
        secrets.update(URL_PASSWORD.findall(value))
        if SECRET_NAME.search(name):
            secrets.add(value)
        if USER_PASSWORD.search(name):
            secrets.add(value.partition(":")[2])
    for secret in sorted(secrets, key=len, reverse=True):  # one may be a part of another
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, BLOT)
    return text


@contextmanager
def redacted() -> Iterator[None]:
    """Blot the secrets out of an exception that leaves the block: Prefect shows its message as the run's state."""
    try:
        yield
    except Exception as error:
        if (message := str(error)) == redact(message):
            raise
        error.args = tuple(redact(part) if isinstance(part, str) else part for part in error.args)
        if str(error) == redact(str(error)):
            raise
        raise Failure(f"{type(error).__name__}: {redact(message)}") from None  # it keeps its message elsewhere


class RedactedRecord(logging.LogRecord):
    """A log record whose message and traceback hold no secret and do not act in a terminal.

    It is so whichever logger and handler it is of.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and _says_all(self.exc_info[1]):
            self.exc_info = None
        try:
            message = self.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit: the handlers report that
            return
        if (clean := printable(redact(message))) != message:
            self.msg, self.args = clean, ()
        if self.exc_info and self.exc_info[0] is not None:
            text = "".join(traceback.format_exception(*self.exc_info)).rstrip()
            if (clean := printable(redact(text))) != text:
                self.exc_text, self.exc_info = clean, None


def _says_all(error: BaseException | None) -> bool:
    """Return whether an error's message is all that a user needs; Prefect raises CancelledRun for a cancelled run."""
    return isinstance(error, InputError | Failure) or type(error).__name__ == "CancelledRun"


def install() -> None:
    """Have every log record of this process redacted from now on."""
    logging.setLogRecordFactory(RedactedRecord)
