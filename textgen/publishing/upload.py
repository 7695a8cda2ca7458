"""The champion on the Hugging Face Hub: the files of the published version in one commit, seen whole or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from textgen.errors import Damaged, PushFailed
from textgen.files import read_json, set_aside, verify, write_atomic
from textgen.hub import ANSWER_SECONDS, cause_in_words, find_cause, show_no_bars
from textgen.publishing.version import PublishedManifest
from textgen.storage import Storage

RECORD_FILE = "hub.json"  # beside the versions: what was last uploaded

T = TypeVar("T")


class Uploaded(BaseModel):
    """The version that a repository holds, and its commit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repo: str
    version: str
    key: str
    commit: str


def upload(published: PublishedManifest, repo: str, storage: Storage) -> Uploaded:
    """Have the branch main of `repo` hold a published version; asks no network where it was the last one uploaded.

    A repository that does not exist is made, private. What was uploaded before a failure is not uploaded again, and
    a commit that would change nothing is not made. The token is huggingface_hub's: HF_TOKEN, or that of a login.

    Raises:
        PushFailed: the Hub, or the way to it, failed, or it refused.
        Damaged: a file is not what was published.
    """
    file = published.folder.parent / RECORD_FILE
    storage.bring_file(file)
    last = _read(file)
    if last is not None and (last.repo, last.version, last.key) == (repo, published.version, published.key):
        return last
    verify(published.folder, published.sha256)
    commit = _ask_hub_to_take(repo, lambda: _commit(published, repo))
    uploaded = Uploaded(repo=repo, version=published.version, key=published.key, commit=commit)
    write_atomic(file, uploaded.model_dump_json(indent=2) + "\n")
    storage.push_file(file)
    return uploaded


def _commit(published: PublishedManifest, repo: str) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    hub = HfApi()
    hub.create_repo(repo, private=True, exist_ok=True)
    parent = hub.model_info(repo, timeout=ANSWER_SECONDS).sha
    names = [*published.sha256, published.FILE]
    additions = [CommitOperationAdd(name, str(published.folder / name)) for name in names]
    message = f"{published.name} {published.version}"
    return hub.create_commit(repo, additions, commit_message=message, parent_commit=parent).oid


def _ask_hub_to_take(repo: str, ask: Callable[[], T]) -> T:
    """Return `ask()`, which uploads to a repository.

    Raises:
        PushFailed: the Hub did not take it, or did not answer.
    """
    show_no_bars()
    try:
        return ask()
    except Exception as error:
        if (found := find_cause(error)) is not None:
            cause, transient = found
        elif isinstance(error, RuntimeError):  # what the client makes of whatever ends the upload of a large file
            inner = error.__cause__ if isinstance(error.__cause__, Exception) else error
            cause, transient = find_cause(inner) or (inner, True)
        elif isinstance(error, ValueError):  # the Hub does not take the card's header, or the repository's name
            cause, transient = error, False
        else:
            raise
        raise PushFailed(f"publish.hub_repo={repo}: {cause_in_words(cause)}", transient) from error


def _read(file: Path) -> Uploaded | None:
    if not file.exists():
        return None
    try:
        return Uploaded.model_validate(read_json(file))
    except ValidationError:
        set_aside(file, Damaged(f"{file} is damaged: it cannot be read as an {Uploaded.__name__}"))
    except Damaged as damage:
        set_aside(file, damage)
    return None
