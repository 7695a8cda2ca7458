"""A training that another machine can continue: its states go to the remote root while it runs, and come from there."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from textgen.errors import Damaged, StorageUnavailable
from textgen.polling import every
from textgen.storage import Storage
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.figures import LOG_FILE
from textgen.training.folder import STATES, STATES_FOLDER, bring_origin, push_origin
from textgen.training.plan import Plan
from textgen.training.state import StateManifest
from textgen.training.trunk import Trunk, bring_trunks, find_trunk, read_trunk

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0


def bring_training(storage: Storage, out: Path) -> None:
    """Have the training folder `out` here as far as it has come elsewhere: finished, or its newest state and its log.

    Raises:
        StorageUnavailable: the remote root did not answer.
    """
    bring_origin(storage, out)
    was_finished = (out / CheckpointManifest.FILE).exists()
    storage.bring(out, CheckpointManifest)
    if (out / CheckpointManifest.FILE).exists():
        if not was_finished or not (out / LOG_FILE).exists():  # the log here ends where this machine stopped
            storage.bring_file(out / LOG_FILE)
        return
    here = {folder.name for folder in (out / STATES_FOLDER).glob(STATES)}
    for folder in reversed(storage.folders(out / STATES_FOLDER, STATES)):
        if folder.name <= max(here, default=""):
            return
        storage.bring(folder, StateManifest)
        if folder.exists():
            storage.bring_file(out / LOG_FILE)
            log.info("%s was brought from %s, from another machine", folder.name, storage.root)
            return


def bring_trunk(storage: Storage, plan: Plan, out: Path) -> None:
    """Have the state here that the training in `out` goes on from, if it is further than the newest of its own.

    Raises:
        StorageUnavailable: the remote root did not answer.
    """
    if not storage.is_remote or (out / CheckpointManifest.FILE).exists():
        return
    bring_trunks(storage)
    newest = max((folder.name for folder in (out / STATES_FOLDER).glob(STATES)), default="")
    while trunk := find_trunk(out.parent, lambda trunk: plan.fits(trunk) and trunk.state.name > newest):
        storage.bring(trunk.state, StateManifest)
        if read_trunk(trunk) is not None:
            return


@contextmanager
def mirrored(storage: Storage, out: Path) -> Iterator[None]:
    """Push the states that a training saves in `out` while the block runs, in a thread that it does not wait for.

    The last one is pushed before the block ends, however it ends. A state that could not be pushed is a warning: the
    next one may be. Of a training that is finished already nothing is: another machine may have finished it.
    """
    if not storage.is_remote or (out / CheckpointManifest.FILE).exists():
        yield
        return
    pushed = ""

    def push_newest(at_the_end: bool) -> None:
        nonlocal pushed
        newest = max((out / STATES_FOLDER).glob(STATES), default=None)
        if newest is None or (newest.name <= pushed and not at_the_end):  # at the end once more, for the whole log
            return
        if _push(storage, out, newest):
            pushed = newest.name

    with every(POLL_SECONDS, push_newest, "training-states"):
        yield


def _push(storage: Storage, out: Path, folder: Path) -> bool:
    """Push a state and the log, remove the states there that are no longer here, and return whether that went well."""
    try:
        push_origin(storage, out)
        if (out / Trunk.FILE).exists():  # before any state that comes after it
            trunk = Trunk.parse(out)
            storage.push(trunk.state, StateManifest.parse(trunk.state))
            storage.push_file(out / Trunk.FILE)
        storage.push(folder, StateManifest.parse(folder))
        storage.push_file(out / LOG_FILE)
        for old in storage.folders(out / STATES_FOLDER, STATES, whole=False):
            if not old.exists() and old.name < folder.name:
                storage.delete(old)
    except (StorageUnavailable, FileNotFoundError, Damaged) as error:  # or it was replaced by a newer one meanwhile
        log.warning("the state %s was not pushed: %s", folder.name, error)
        return False
    return True
