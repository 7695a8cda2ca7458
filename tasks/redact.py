"""Secrets do not reach the logs: the values of the environment's keys, tokens and passwords are blotted out."""

import logging
import os
import re
import traceback

SECRET_NAME = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|CREDENTIALS|AUTH_STRING|NOTIFY_URL)(?:$|_)|PASSWORD|PASSWD")
SHORTEST_SECRET = 8  # characters: shorter values are words that logs need
BLOT = "********"


def redact(text: str) -> str:
    """Return `text` without the secrets of the environment as it is now."""
    secrets = {value for name, value in os.environ.items() if SECRET_NAME.search(name)}
    for secret in sorted(secrets, key=len, reverse=True):  # one may be a part of another
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, BLOT)
    return text


class RedactedRecord(logging.LogRecord):
    """A log record whose message and traceback hold no secret, whichever logger and handler it is of."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        try:
            message = self.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit: the handlers report that
            return
        if (clean := redact(message)) != message:
            self.msg, self.args = clean, ()
        if self.exc_info and self.exc_info[0] is not None:
            text = "".join(traceback.format_exception(*self.exc_info)).rstrip()
            if (clean := redact(text)) != text:
                self.exc_text, self.exc_info = clean, None


def install() -> None:
    """Have every log record of this process redacted from now on."""
    logging.setLogRecordFactory(RedactedRecord)
