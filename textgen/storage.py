"""The storage root: the folders of the stages, and, for machines that share no disk, the remote root they mirror.

The remote root (an fsspec URL, `storage.root`) mirrors the local one. Each object is written at once, and a folder's
manifest after the files it names: who finds a manifest finds what it names. With a local root, nothing is brought and
nothing is pushed.
"""

import logging
import tempfile
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from filelock import FileLock

from textgen.config import StorageConfig, parse_config
from textgen.errors import Damaged, Failure, InputError, StorageUnavailable
from textgen.files import Manifest, build_once, is_plain_name, new_folder, set_aside, write_atomic
from textgen.terminal import brief, one_line

log = logging.getLogger(__name__)

DOWNLOADS = 2  # of a folder whose files are not what its manifest says, before it is given up
M = TypeVar("M", bound=Manifest)
OPTIONS = {"use_listings_cache": False, "skip_instance_cache": True}  # other machines write there too


class Remote:
    """A remote root: the object store of an fsspec URL, where the folders are as they are under `local`."""

    def __init__(self, url: str, local: Path) -> None:
        """Open the root.

        Raises:
            InputError: fsspec knows no such kind of URL, or lacks the package for it.
        """
        self.url, self.local = url, local
        try:
            self.files, self.base = fsspec.url_to_fs(url.rstrip("/"), **OPTIONS)
        except (ValueError, ImportError) as error:
            raise InputError(f"storage.root={brief(url)}: {one_line(error)}") from error

    def place(self, path: Path) -> str:
        """Return where a path of the local root is in the remote one."""
        return f"{self.base}/{path.resolve().relative_to(self.local).as_posix()}"

    def read(self, path: Path) -> bytes | None:
        """Return a file's bytes, None where it is not there."""
        try:
            return self.files.cat_file(self.place(path))
        except FileNotFoundError:
            return None

    def sizes(self, folder: Path) -> dict[str, int]:
        """Return the sizes in bytes of a folder's files, by name."""
        entries = self.files.ls(self.place(folder), detail=True)
        return {entry["name"].split("/")[-1]: entry["size"] for entry in entries}

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Turn any error of the remote root into StorageUnavailable.

        Raises:
            StorageUnavailable: with that message.
        """
        try:
            yield
        except Failure:
            raise
        except Exception as error:  # of the object store's own client, of its HTTP client, of the system
            message = f"storage.root={self.url}: {type(error).__name__}: {one_line(error)}"
            refused = isinstance(error, PermissionError) or "Credentials" in type(error).__name__
            raise StorageUnavailable(message, transient=not refused) from error

    def set_aside(self, folder: Path) -> None:
        """Rename a damaged remote folder out of the way, its manifest first."""
        number = 1
        with self.speaking():
            while self.files.exists(aside := f"{self.place(folder)}.damaged-{number}"):
                number += 1
            names = self.files.find(self.place(folder))
            for name in sorted(names, key=lambda name: not name.endswith(f"/{Manifest.FILE}")):
                self.files.mv(name, name.replace(self.place(folder), aside, 1))
        log.warning("%s: set aside there as %s", self.place(folder), aside)

    def download(self, folder: Path, manifest_type: type[Manifest]) -> bool:
        """Bring `folder` and return whether the remote root has it.

        Raises:
            Damaged: what came is not what its manifest says.
        """
        with self.speaking():
            stored = self.read(folder / manifest_type.FILE)
        if stored is None:
            return False
        arrived = folder.with_name(f".{folder.name}.arrived") if folder.exists() else folder
        with new_folder(arrived) as temporary:
            (temporary / manifest_type.FILE).write_bytes(stored)
            with self.speaking():
                for name in manifest_type.parse(temporary).sha256_by_file():
                    try:
                        self.files.get_file(self.place(folder / name), str(temporary / name))
                    except FileNotFoundError as error:
                        raise Damaged(f"{folder / name} is missing") from error
            manifest_type.read(temporary)
        if arrived != folder:  # a training folder, which holds more than what a finished training leaves
            for path in sorted(arrived.iterdir(), key=lambda path: path.name == manifest_type.FILE):
                path.replace(folder / path.name)
            arrived.rmdir()
        return True


class Folders:
    """The folders of the stages in a storage root on this machine: the one place that spells their names."""

    def __init__(self, local: Path) -> None:
        self.local = local

    def raw(self, name: str | None = None) -> Path:
        """Return the folder of a corpus, which has a folder for each frozen text; without a name, that of all."""
        return self.local / "raw" if name is None else self._folder("raw", name)

    def processed(self, key: str | None = None) -> Path:
        """Return the folder of the tokens with this key; without a key, that of all."""
        return self.local / "processed" if key is None else self._folder("processed", key)

    def training(self, name: str | None = None) -> Path:
        """Return the folder of a training; without a name, that of all."""
        return self.local / "checkpoints" if name is None else self._folder("checkpoints", name)

    def models(self, name: str | None = None) -> Path:
        """Return the folder of the published versions of a model; without a name, that of all."""
        return self.local / "models" if name is None else self._folder("models", name)

    def drift(self, key: str | None = None) -> Path:
        """Return the folder of a comparison of two texts; without a key, that of all."""
        return self.local / "drift" if key is None else self._folder("drift", key)

    def check_writable(self) -> None:
        """Check that the folder that the stages work in can be written, or made; nothing of the check is left.

        Raises:
            InputError: it cannot.
        """
        root = f"storage.root={brief(str(self.local))}"
        try:
            there = next(path for path in [self.local.absolute(), *self.local.absolute().parents] if path.exists())
        except OSError as error:
            raise InputError(f"{root}: {error.strerror}") from None
        if not there.is_dir():
            raise InputError(f"{root}: {there} is no folder")
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:  # os.access lets root write everywhere, even in /proc
            raise InputError(f"{root}: {there} cannot be written: {error.strerror}") from None

    def _folder(self, stage: str, name: str) -> Path:
        """Return a folder of a stage.

        Raises:
            InputError: the name would lead elsewhere.
        """
        if not is_plain_name(name, hidden=True):
            raise InputError(f"{brief(name)} is no name of a folder in {self.local / stage}")
        return self.local / stage / name

    def inside(self, path: Any) -> Path:
        """Return the folder at a path under the root, as `name` gave it.

        Raises:
            Damaged: the path would lead elsewhere, or is none.
        """
        if not isinstance(path, str) or not all(is_plain_name(part, hidden=True) for part in path.split("/")):
            raise Damaged(f"{brief(path)} is no path under {self.local}")
        return self.local / path

    def report(self, key: str | None = None) -> Path:
        """Return the folder of a report on a text; without a key, that of all."""
        return self.local / "reports" if key is None else self._folder("reports", key)

    def name(self, folder: Path) -> str:
        """Return a folder's path under the root."""
        return folder.absolute().relative_to(self.local.absolute()).as_posix()


class Storage(Folders):
    """A storage root: `local`, where the stages work, and the remote root that it mirrors, if there is one.

    Every method that brings, pushes, claims, lists or deletes raises StorageUnavailable where the remote root does not
    answer, or refuses.
    """

    def __init__(self, config: StorageConfig) -> None:
        """Open the root.

        Raises:
            InputError: fsspec knows no such kind of URL, or lacks the package for it.
        """
        super().__init__(config.local)
        self.root = config.root
        self.remote = Remote(config.root, self.local.resolve()) if config.is_remote else None

    @classmethod
    def at(cls, root: str | Path) -> "Storage":
        """Open the root at a folder or an fsspec URL.

        Raises:
            InputError: it is none that a root can be, fsspec knows no such kind of URL, or lacks the package for it.
        """
        return cls(parse_config({"storage": {"root": str(root)}}).storage)

    @property
    def is_remote(self) -> bool:
        return self.remote is not None

    def build(self, folder: Path, manifest_type: type[M], build: Callable[[Path], M]) -> M:
        """Return the manifest of `folder`: brought, or else built by `build` and pushed."""
        self.bring(folder, manifest_type)
        manifest = build_once(folder, manifest_type, build)
        self.push(folder, manifest)
        return manifest

    def bring(self, folder: Path, manifest_type: type[Manifest]) -> None:
        """Have `folder` here, verified, if the remote root has it and this machine does not.

        What arrives damaged is fetched again, and then set aside there, so that it is made anew.
        """
        if (remote := self.remote) is None:
            return
        folder = folder.resolve()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.arriving.lock")):
            if (folder / manifest_type.FILE).exists():
                try:
                    manifest_type.read(folder)
                    return
                except Damaged as damage:
                    set_aside(folder, damage)
            for _ in range(DOWNLOADS):
                try:
                    if remote.download(folder, manifest_type):
                        log.info("%s came from %s", folder.name, remote.place(folder.parent))
                    return
                except Damaged as damage:
                    log.warning("%s: it came so from %s", damage, remote.place(folder))
            remote.set_aside(folder)

    def push(self, folder: Path, manifest: Manifest) -> None:
        """Have the remote root hold the files that the manifest of `folder` names, and then the manifest.

        A different manifest there is removed first, because its files are about to change.
        """
        if (remote := self.remote) is None:
            return
        stored = (folder / manifest.FILE).read_bytes()
        with remote.speaking():
            there = remote.read(folder / manifest.FILE)
            known = there == stored
            if there is not None and not known:
                remote.files.rm_file(remote.place(folder / manifest.FILE))
            sizes = remote.sizes(folder) if known else {}
            for name in manifest.sha256_by_file():
                if sizes.get(name) != (folder / name).stat().st_size:
                    remote.files.put_file(str(folder / name), remote.place(folder / name))
            if not known:
                remote.files.pipe_file(remote.place(folder / manifest.FILE), stored)

    def bring_file(self, path: Path) -> None:
        """Have a small file, that changes, here as it is in the remote root, if it is there."""
        if (remote := self.remote) is not None:
            with remote.speaking():
                data = remote.read(path)
            if data is not None:
                write_atomic(path, data)

    def push_file(self, path: Path) -> None:
        """Have the remote root hold a small file, that changes, as it is here, if it is here."""
        if (remote := self.remote) is not None and path.exists():
            with remote.speaking():
                remote.files.pipe_file(remote.place(path), path.read_bytes())

    def push_bytes(self, path: Path, data: bytes) -> None:
        """Write a small file of the remote root that this machine has no use for."""
        if (remote := self.remote) is not None:
            with remote.speaking():
                remote.files.pipe_file(remote.place(path), data)

    def read_files(self, folder: Path, known: Container[str]) -> list[bytes]:
        """Return what the files of a folder of the remote root hold, but for those of known names."""
        if (remote := self.remote) is None:
            return []
        with remote.speaking():
            names = [name.split("/")[-1] for name in remote.files.glob(f"{remote.place(folder)}/*")]
            found = [remote.read(folder / name) for name in names if name not in known]
        return [data for data in found if data is not None]

    def claim(self, path: Path) -> bool:
        """Create an empty file in the remote root; return False where another process did."""
        if (remote := self.remote) is not None:
            with remote.speaking():
                try:
                    remote.files.pipe_file(remote.place(path), b"", mode="create")
                except FileExistsError:
                    return False
        return True

    def folders(self, home: Path, pattern: str, whole: bool = True, file: str = Manifest.FILE) -> list[Path]:
        """Return the folders of `home`, as they would be here, that are in the remote root with their `file`.

        The pattern may be of several levels. With `whole=False`, folders whose push did not finish are included.
        """
        if (remote := self.remote) is None:
            return []
        with remote.speaking():
            found = remote.files.glob(f"{remote.place(home)}/{pattern}/{file if whole else '*'}")
        levels = 1 + pattern.count("/")
        return sorted({home.joinpath(*name.split("/")[-1 - levels : -1]) for name in found})

    def read_manifest(self, folder: Path, manifest_type: type[M]) -> M:
        """Return the manifest of a folder that is here or in the remote root, and none of the files that it names.

        Raises:
            Damaged: it is missing, or is not what was written.
        """
        if (remote := self.remote) is None or (folder / manifest_type.FILE).exists():
            return manifest_type.parse(folder)
        with remote.speaking():
            stored = remote.read(folder / manifest_type.FILE)
        if stored is None:
            raise Damaged(f"{folder / manifest_type.FILE} is missing")
        with tempfile.TemporaryDirectory() as temporary:
            (Path(temporary) / manifest_type.FILE).write_bytes(stored)
            return manifest_type.parse(Path(temporary)).model_copy(update={"path": str(folder)})

    def delete(self, folder: Path) -> None:
        """Remove a folder from the remote root, if it is there, its manifest first."""
        if (remote := self.remote) is not None:
            with remote.speaking(), suppress(FileNotFoundError):
                with suppress(FileNotFoundError):
                    remote.files.rm_file(remote.place(folder / Manifest.FILE))
                remote.files.rm(remote.place(folder), recursive=True)
