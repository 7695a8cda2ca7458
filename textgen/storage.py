"""Storage for machines that share no disk: folders go to and come from a remote root, whole and verified.

The remote root (an fsspec URL, `storage.root`) mirrors the local one. Each object is written at once, and a folder's
manifest after the files it names: who finds a manifest finds what it names. With a local root nothing here does
anything.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec
from filelock import FileLock

from textgen.config import StorageConfig
from textgen.errors import Damaged, Failure, InputError, StorageUnavailable
from textgen.files import Manifest, new_folder, set_aside, write_atomic

log = logging.getLogger(__name__)

DOWNLOADS = 2  # of a folder whose files are not what its manifest says, before it is given up
OPTIONS = {"use_listings_cache": False, "skip_instance_cache": True}  # other machines write there too


class Storage:
    """A storage root: `local`, where the stages work, and the remote root that it mirrors, if there is one.

    Every method but `folders` raises StorageUnavailable where the remote root does not answer, or refuses.
    """

    def __init__(self, config: StorageConfig) -> None:
        """Open the root.

        Raises:
            InputError: fsspec knows no such kind of URL, or lacks the package for it.
        """
        self.local, self.is_remote, self.root = config.local.resolve(), config.is_remote, config.root
        if self.is_remote:
            try:
                self._remote, self._base = fsspec.url_to_fs(config.root.rstrip("/"), **OPTIONS)
            except (ValueError, ImportError) as error:
                raise InputError(f"storage.root={config.root!r}: {error}") from error

    def bring(self, folder: Path, manifest_type: type[Manifest]) -> None:
        """Have `folder` here, verified, if the remote root has it and this machine does not.

        What arrives damaged is fetched again, and then set aside there, so that it is made anew.
        """
        if not self.is_remote:
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
                    if self._download(folder, manifest_type):
                        log.info("%s came from %s", folder.name, self._place(folder.parent))
                    return
                except Damaged as damage:
                    log.warning("%s: it came so from %s", damage, self._place(folder))
            self._set_aside(folder)

    def push(self, folder: Path, manifest: Manifest) -> None:
        """Have the remote root hold the files that the manifest of `folder` names, and then the manifest.

        Another manifest that is there is removed before: its files are about to be others.
        """
        if not self.is_remote:
            return
        stored = (folder / manifest.FILE).read_bytes()
        with self._speaking():
            there = self._read(folder / manifest.FILE)
            known = there == stored
            if there is not None and not known:
                self._remote.rm_file(self._place(folder / manifest.FILE))
            sizes = self._sizes(folder) if known else {}
            for name in manifest.sha256_by_file():
                if sizes.get(name) != (folder / name).stat().st_size:
                    self._remote.put_file(str(folder / name), self._place(folder / name))
            if not known:
                self._remote.pipe_file(self._place(folder / manifest.FILE), stored)

    def bring_file(self, path: Path) -> None:
        """Have a small file, that changes, here as it is in the remote root, if it is there."""
        if self.is_remote:
            with self._speaking():
                data = self._read(path)
            if data is not None:
                write_atomic(path, data)

    def push_file(self, path: Path) -> None:
        """Have the remote root hold a small file, that changes, as it is here, if it is here."""
        if self.is_remote and path.exists():
            with self._speaking():
                self._remote.pipe_file(self._place(path), path.read_bytes())

    def claim(self, path: Path) -> bool:
        """Create an empty file in the remote root; return False where another process did."""
        if self.is_remote:
            with self._speaking():
                try:
                    self._remote.pipe_file(self._place(path), b"", mode="create")
                except FileExistsError:
                    return False
        return True

    def folders(self, home: Path, pattern: str, whole: bool = True) -> list[Path]:
        """Return the folders of `home`, as they would be here, that are in the remote root with their manifests.

        Those whose push did not come to its end too, unless they are to be `whole`.
        """
        if not self.is_remote:
            return []
        with self._speaking():
            found = self._remote.glob(f"{self._place(home)}/{pattern}/{Manifest.FILE if whole else '*'}")
        return sorted({home / name.split("/")[-2] for name in found})

    def delete(self, folder: Path) -> None:
        """Remove a folder from the remote root, its manifest first."""
        if self.is_remote:
            with self._speaking():
                with suppress(FileNotFoundError):
                    self._remote.rm_file(self._place(folder / Manifest.FILE))
                self._remote.rm(self._place(folder), recursive=True)

    def _download(self, folder: Path, manifest_type: type[Manifest]) -> bool:
        """Bring `folder` and return whether the remote root has it.

        Raises:
            Damaged: what came is not what its manifest says.
        """
        with self._speaking():
            stored = self._read(folder / manifest_type.FILE)
        if stored is None:
            return False
        arrived = folder.with_name(f".{folder.name}.arrived") if folder.exists() else folder
        with new_folder(arrived) as temporary:
            (temporary / manifest_type.FILE).write_bytes(stored)
            with self._speaking():
                for name in manifest_type.parse(temporary).sha256_by_file():
                    try:
                        self._remote.get_file(self._place(folder / name), str(temporary / name))
                    except FileNotFoundError as error:
                        raise Damaged(f"{folder / name} is missing") from error
            manifest_type.read(temporary)
        if arrived != folder:  # a training folder, which holds more than what a finished training leaves
            for path in sorted(arrived.iterdir(), key=lambda path: path.name == manifest_type.FILE):
                path.replace(folder / path.name)
            arrived.rmdir()
        return True

    def _set_aside(self, folder: Path) -> None:
        """Rename a damaged remote folder out of the way, its manifest first."""
        number = 1
        with self._speaking():
            while self._remote.exists(aside := f"{self._place(folder)}.damaged-{number}"):
                number += 1
            names = self._remote.find(self._place(folder))
            for name in sorted(names, key=lambda name: not name.endswith(f"/{Manifest.FILE}")):
                self._remote.mv(name, name.replace(self._place(folder), aside, 1))
        log.warning("%s: set aside there as %s", self._place(folder), aside)

    def _place(self, path: Path) -> str:
        """Return where a path of the local root is in the remote one."""
        return f"{self._base}/{path.resolve().relative_to(self.local).as_posix()}"

    def _read(self, path: Path) -> bytes | None:
        try:
            return self._remote.cat_file(self._place(path))
        except FileNotFoundError:
            return None

    def _sizes(self, folder: Path) -> dict[str, int]:
        entries = self._remote.ls(self._place(folder), detail=True)
        return {entry["name"].split("/")[-1]: entry["size"] for entry in entries}

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Turn what the remote root answers with into a message.

        Raises:
            StorageUnavailable: with that message.
        """
        try:
            yield
        except Failure:
            raise
        except Exception as error:  # of the object store's own client, of its HTTP client, of the system
            reason = " ".join(str(error).split())
            message = f"storage.root={self.root}: {type(error).__name__}: {reason}"
            refused = isinstance(error, PermissionError) or "Credentials" in type(error).__name__
            raise StorageUnavailable(message, transient=not refused) from error
