"""The names in a training folder, and what it is known by from its beginning. It loads no torch."""

from contextlib import suppress
from pathlib import Path
from typing import Self

from textgen.errors import Damaged
from textgen.files import Manifest, read_json
from textgen.model.find import LINEAGE_FILE
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
    texts: list[str]  # the keys of its text and of those of the models that it came from, its own first
    names_all_texts: bool  # False where a model that it came from does not say of which texts it was made

    def sha256_by_file(self) -> dict[str, str]:
        return {}

    @classmethod
    def of(cls, training: Path, key: str) -> Self | None:
        """Return what the training of that key in a folder is made of, None where it does not say."""
        with suppress(Damaged):
            origin = cls.parse(training)
            return origin if origin.key == key else None
        return None


def texts_of(model: Path) -> tuple[list[str], bool]:
    """Return the keys of the texts that a model came from, and whether these are all; of a version or a training."""
    with suppress(Damaged):
        if not (model / LINEAGE_FILE).is_file():
            origin = Origin.parse(model)
            return origin.texts, origin.names_all_texts
        lineage = read_json(model / LINEAGE_FILE)
        raw, checkpoint, earlier = lineage.get("raw"), lineage.get("checkpoint"), lineage.get("earlier_texts")
        if isinstance(raw, dict) and isinstance(earlier, list):
            return [str(key) for key in (raw.get("key"), *earlier)], lineage.get("names_all_texts") is True
        if isinstance(raw, dict) and isinstance(checkpoint, dict):
            return [str(raw.get("key"))], checkpoint.get("initial_sha256") is None
    return [], False


def bring_origin(storage: Storage, training: Path) -> None:
    """Have here from the remote root what a training folder is known by."""
    for file in (KEY_FILE, Origin.FILE):
        storage.bring_file(training / file)


def push_origin(storage: Storage, training: Path) -> None:
    """Have the remote root hold what a training folder is known by."""
    for file in (KEY_FILE, Origin.FILE):
        storage.push_file(training / file)
