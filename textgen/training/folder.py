"""The names in a training folder, and what it is known by from its beginning. It loads no torch."""

from pathlib import Path

from textgen.files import Manifest
from textgen.storage import Storage

KEY_FILE = "key.txt"  # which training a folder holds, from its first moment on
STATES_FOLDER = "states"
TRUNK_FOLDER = "trunk"
STATES = "step-????????"
TRUNK_FILE = "trunk.json"


class Origin(Manifest):
    """What a training is made of. It is written before the first weights."""

    FILE = "origin.json"
    NAMES = ("key", "tokens_key")

    tokens_key: str
    initial_sha256: str | None  # of the weights that it started from, None where they were drawn
    initial: str | None  # the folder of the model that it started from: its path under the root, else its whole path

    def sha256_by_file(self) -> dict[str, str]:
        return {}


def bring_origin(storage: Storage, training: Path) -> None:
    """Have here from the remote root what a training folder is known by."""
    for file in (KEY_FILE, Origin.FILE):
        storage.bring_file(training / file)


def push_origin(storage: Storage, training: Path) -> None:
    """Have the remote root hold what a training folder is known by."""
    for file in (KEY_FILE, Origin.FILE):
        storage.push_file(training / file)
