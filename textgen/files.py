"""Files that can be trusted: sha256, atomic writes, manifests, and folders that are built once and verified."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from textgen.errors import Damaged
from textgen.terminal import brief, printable

log = logging.getLogger(__name__)

REMOVED = ".removed"  # ends the hidden name of what is being removed
KEY_LENGTH = 16  # hex digits of a sha256 that name a folder: 64 bits
MAX_NAME_BYTES = 255  # of most file systems
MAX_JSON_BYTES = 1 << 28  # of a file that is read whole
MAX_FILES = 1_000  # that a manifest names


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expand_home(name: str) -> Path:
    """Return a path, in which a leading `~` is the home folder; `~name` of no user stays as it is."""
    return Path(os.path.expanduser(name))  # noqa: PTH111  Path.expanduser raises where there is no such user


@contextmanager
def naming_the_file(path: Path) -> Iterator[None]:
    """Have an error of the disk name the file that the block writes: libraries omit the name, or wrap the error.

    Raises:
        OSError: the disk is full, or failed otherwise.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, OSError) and cause.errno is not None):
            cause = cause.__context__
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        raise OSError(cause.errno, os.strerror(cause.errno), str(path)) from error


def is_utf8(text: str) -> bool:
    """Return whether UTF-8 can hold a text: JSON and Python can spell half of a surrogate pair."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def canonical_json(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_key(*parts: Any) -> str:
    """Return the folder name of what is made from `parts` (anything that JSON can hold)."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:KEY_LENGTH]


def is_plain_name(name: str, hidden: bool = False) -> bool:
    """Return whether `name` names one file or folder in a folder, on any system; one that is hidden where it may be."""
    if name in ("", ".", "..") or (name.startswith(".") and not hidden):
        return False
    if any(character in name for character in "/\\\n\t") or printable(name) != name:
        return False
    return len(name.encode()) <= MAX_NAME_BYTES


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        Damaged: it is missing, is not JSON, or holds something else.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise Damaged(f"{path} is damaged: it has more than {MAX_JSON_BYTES:,} bytes")
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise Damaged(f"{path} is missing") from error
    except (NotADirectoryError, IsADirectoryError) as error:
        raise Damaged(f"{path} is no file") from error
    except (ValueError, RecursionError) as error:  # or numbers of thousands of digits, or brackets without end
        raise Damaged(f"{path} is damaged: it is not JSON") from error
    if not isinstance(content, dict):
        raise Damaged(f"{path} is damaged: it is no JSON object")
    return content


def flush(path: Path) -> None:
    """Have the disk hold a file's bytes, or a folder's entries, before returning."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `path` so that a reader sees the old bytes or the new ones, never a part of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            os.fchmod(file.fileno(), 0o644)  # mkstemp makes it private to its owner
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).rename(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    flush(path.parent)


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; where another process holds it, log `busy` and wait."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info(busy)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def lock_file(path: Path) -> Path:
    """Return the lock file beside a folder or a file, held by whoever makes or changes it."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def all_held(locks: Iterable[Path]) -> Iterator[bool]:
    """Hold these lock files while the block runs; yield False where another process holds one of them."""
    with ExitStack() as held:
        try:
            for lock in locks:
                held.enter_context(FileLock(lock).acquire(timeout=0))
        except Timeout:
            yield False
        else:
            yield True


def mark_used(folder: Path) -> None:
    """Note that a folder is in use now, by its time of change: what was not used for long may be removed."""
    with suppress(OSError):  # a root that cannot be written to cannot be cleaned either
        os.utime(folder)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `folder`, whole and on disk, if the block does not raise."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            flush(path)
        temporary.chmod(0o755)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush(folder.parent)


def set_aside(path: Path, reason: Exception) -> Path:
    """Rename a damaged file or folder out of the way, name it in the log, and return its new path."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    log.warning("%s; set aside as %s", reason, aside)
    return aside


def hide(path: Path) -> Path:
    """Rename a file or folder that is to be removed, so that nobody sees a part of it, and return its new path."""
    if path.name.endswith(REMOVED):
        return path
    hidden = path.with_name(f".{path.name.lstrip('.')}{REMOVED}")
    if hidden.exists():  # of a removal that was killed
        remove(hidden)
    path.rename(hidden)
    return hidden


def remove(path: Path) -> None:
    """Remove a file, a folder, or a link alone. After a kill, what is left has a name that ends in REMOVED."""
    hidden = hide(path)
    if hidden.is_dir() and not hidden.is_symlink():
        shutil.rmtree(hidden)
    else:
        hidden.unlink()


def verify(folder: Path, sha256_by_file: Mapping[str, str]) -> None:
    """Check that the files of a folder have these sha256.

    Raises:
        Damaged: a file is missing or differs; the message names it.
    """
    for name, expected in sha256_by_file.items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{path} is missing")
        if (actual := sha256_file(path)) != expected:
            raise Damaged(f"{path} is damaged: its sha256 is {actual[:12]}…, its manifest says {expected[:12]}…")


class Manifest(BaseModel):
    """What a stage made: the files with their sha256, and where they came from. Kept in the folder it describes.

    It may be somebody else's. Its files, and the values of the fields of NAMES, are names in a folder, never paths.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    FILE: ClassVar[str] = "manifest.json"
    NAMES: ClassVar[tuple[str, ...]] = ("key",)

    key: str
    # Not part of the stored manifest:
    path: str = Field("", description="the folder, as this process reaches it")
    built: bool = Field(False, description="whether this call made it")

    def sha256_by_file(self) -> dict[str, str]:
        """Return the sha256 of every file that the manifest vouches for."""
        raise NotImplementedError

    @property
    def folder(self) -> Path:
        return Path(self.path)

    def __eq__(self, other: object) -> bool:
        """Return whether both say the same of the same folder, whoever made it."""
        return type(other) is type(self) and (self.path, self.content()) == (other.path, other.content())

    def says_the_same(self, stored: "Manifest") -> bool:
        """Return whether a record of this manifest, as Prefect keeps one, is of what the folder says."""
        return self == stored

    def as_built(self) -> Self:
        """Return the manifest of what was made just now."""
        return self.model_copy(update={"built": True})

    def content(self) -> dict[str, Any]:
        """Return what is stored of the manifest."""
        return self.model_dump(mode="json", exclude={"path", "built"})

    def write(self, folder: Path) -> None:
        """Write the manifest into its folder, with a sha256 of itself."""
        content = self.content()
        digest = hashlib.sha256(canonical_json(content).encode()).hexdigest()
        write_atomic(folder / self.FILE, json.dumps({**content, "manifest_sha256": digest}, indent=2) + "\n")

    @classmethod
    def parse(cls, folder: Path) -> Self:
        """Read a folder's manifest, and not the files that it names.

        Raises:
            Damaged: the manifest is missing or is not what was written.
        """
        path = folder / cls.FILE
        content = read_json(path)
        try:
            digest = content.pop("manifest_sha256")
            actual = hashlib.sha256(canonical_json(content).encode()).hexdigest()
        except (ValueError, KeyError, RecursionError) as error:
            raise Damaged(f"{path} is damaged: it cannot be read as a {cls.__name__}") from error
        if actual != digest:
            raise Damaged(f"{path} is damaged: it does not have the sha256 that it was written with")
        try:
            manifest = cls.model_validate({**content, "path": str(folder)})
        except ValidationError as error:
            fields = ", ".join(sorted({str(part["loc"][0]) for part in error.errors() if part["loc"]}))
            raise Damaged(
                f"{path} is of an older format ({brief(fields)}); the flow makes it anew when it runs"
            ) from error
        manifest._check_names(path)
        return manifest

    def _check_names(self, path: Path) -> None:
        """Check that what is used as a part of a path is a plain name.

        Raises:
            Damaged: something is not; `path` is the manifest's.
        """
        files = self.sha256_by_file()
        if len(files) > MAX_FILES:
            raise Damaged(f"{path} is damaged: it names {len(files):,} files, more than {MAX_FILES:,}")
        for name in [*files, *(getattr(self, field) for field in self.NAMES)]:
            if not is_plain_name(name):
                raise Damaged(f"{path} is damaged: {brief(name)} is no plain file name")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a folder's manifest and verify every file it names.

        Raises:
            Damaged: the manifest or a file is missing or is not what was written.
        """
        manifest = cls.parse(folder)
        verify(folder, manifest.sha256_by_file())
        return manifest


M = TypeVar("M", bound=Manifest)


def build_once(folder: Path, manifest_type: type[M], build: Callable[[Path], M]) -> M:
    """Return the manifest of `folder`, after `build` has filled it if it is absent or damaged.

    Of several processes one builds and the others wait for it. A damaged folder is set aside, never deleted.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock_file(folder)):
        if folder.exists():
            mark_used(folder)
            try:
                return manifest_type.read(folder)
            except Damaged as damage:
                set_aside(folder, damage)
        with new_folder(folder) as temporary:
            build(temporary).write(temporary)
        return manifest_type.read(folder).as_built()
