"""Which files a value of `data.files` names: an existing file or folder is that, and anything else is a glob."""

import functools
import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from textgen.errors import InputError
from textgen.files import expand_home
from textgen.terminal import printable

if TYPE_CHECKING:
    from textgen.sections import Split

KINDS = {
    ".txt": "text", ".md": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet",
}  # fmt: skip
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
HIDDEN, BROKEN, SPECIAL, LOOP, UNREADABLE = (
    "hidden", "broken link", "not a regular file", "folder that was read already", "unreadable",
)  # fmt: skip
STORAGE, REPEATED = "storage.root", "file that was read already"
LINE_ENDS = str.maketrans({"\n": "\\n", "\t": "\\t"})
OWN_TEXT = Path("data/text")  # where data/README.md has people put theirs
NO_TEXT_YET = f"Nothing to train on yet: put your text into {OWN_TEXT}"


@dataclass(frozen=True)
class LocalFile:
    """A file of text, and how it is read: by its ending, whatever it holds."""

    path: Path
    kind: str
    compression: str | None
    name: str  # within the folder that the value names, as `shown`

    def __str__(self) -> str:
        return shown(self.path)

    @property
    def has_rows(self) -> bool:
        """Whether the file is a table, each row of which is a document."""
        return self.kind != "text"


@dataclass(frozen=True)
class SplitFile:
    """A file to read, its sha256, and its split where that is given."""

    file: LocalFile
    sha256: str
    split: "Split | None"


class LocalText(NamedTuple):
    """The files of a text, in order, and what was left out of folders, by reason."""

    files: list[SplitFile]
    left_out: Mapping[str, int] = {}


@dataclass
class Found:
    """The files that a value names, in the order of their paths, and what was left out of folders, by reason."""

    files: list[LocalFile] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def find_files(key: str, values: Sequence[str], storage: Path | None = None) -> Found:
    """Return the files that the values of the configuration key `key` name; each file once, by its first name.

    Of a folder that has the storage root in it, what is in `storage` is left out: it is what runs have made.

    Raises:
        InputError: a value names nothing, or a file of a kind that is not read, or a folder cannot be listed.
    """
    found, seen, names = Found(), set[Path](), set[Path]()
    for value in values:
        inside = storage is not None and find_path(value).resolve().is_relative_to(storage.resolve())
        for file in _files_of(key, value, found.left_out, None if inside else storage):
            if (place := file.path.resolve()) not in seen:
                seen.add(place)
                found.files.append(file)
            elif file.path.absolute() not in names:  # a link to it, or where a link leads
                found.left_out[REPEATED] += 1
            names.add(file.path.absolute())
    found.files.sort(key=lambda file: str(file.path))
    return found


def is_awaited(files: object) -> bool:
    """Return whether `data.files` is the place for a person's own text, and there is none yet.

    Any other place without files is a mistake, as is a link that leads nowhere.
    """
    if not isinstance(files, str) or Path(files) != OWN_TEXT:
        return False
    if not os.path.lexists(OWN_TEXT):
        return True
    return OWN_TEXT.is_dir() and all(path.name.startswith(".") for path in OWN_TEXT.iterdir())


def read_kind(path: Path) -> tuple[str, str | None] | None:
    """Return a file's kind and compression by its endings, None for a file of a kind that is not read."""
    endings = [suffix.lower() for suffix in path.suffixes[-2:]]
    compression = endings.pop() if endings and endings[-1] in COMPRESSIONS else None
    kind = KINDS.get(endings[-1]) if endings else None
    return None if kind is None else (kind, compression)


@functools.cache
def ending_of(name: str) -> str:
    """Return the ending that says a file's kind, as `.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] and suffixes[-1] in COMPRESSIONS else suffixes[-1:])


def find_path(name: str) -> Path:
    """Return the path that a name means: a leading `~` is the home folder, unless something has that very name."""
    path = Path(name)
    try:
        return path if path.exists() else expand_home(name)
    except OSError:  # as of a name that is too long
        return path


def shown(path: Path) -> str:
    """Return a path as one line of UTF-8: line ends, and bytes that are no text, as their escapes."""
    return printable(path.as_posix()).translate(LINE_ENDS)


def _files_of(key: str, value: str, left_out: Counter[str], storage: Path | None) -> Iterator[LocalFile]:
    path = find_path(value)
    if path != Path(value):
        value = str(path)
    try:
        folder = path
        if value and path.is_dir():
            paths: Iterable[Path] = _walk(path, left_out, storage)
        elif path.is_file():
            paths, folder = [path], path.parent
        else:
            folder = _fixed_part(path)
            paths = [path for path in _matches(path) if not path.is_dir() and not _is_in(path, storage)]
        any_file = False
        for found in paths:
            any_file = True
            yield _local_file(key, value, found, folder)
    except OSError as error:
        raise InputError(f"{key}={value!r}: {error.strerror}: {error.filename}") from None
    if not any_file:
        raise InputError(f"{key}={value!r}: no file matches{_why(left_out)}")


def _fixed_part(pattern: Path) -> Path:
    """Return the folder of a glob's files: its parts before the first that matches several names."""
    parts = itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts[:-1])
    return Path(*parts)


def _matches(pattern: Path) -> list[Path]:
    """Return what a glob matches. `**` is a folder and those below it, each read once, so that loops of links end."""
    if "**" not in pattern.parts:
        return sorted(map(Path, glob.glob(str(pattern))))  # noqa: PTH207
    at = pattern.parts.index("**")
    below = pattern.parts[at + 1 :] or ("*",)
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = [path for path in _matches(Path(*pattern.parts[:at])) if path.is_dir()][::-1]
    while waiting:
        here = waiting.pop()
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        found += _matches(Path(glob.escape(str(here)), *below))
        with os.scandir(here) as entries:
            folders = [Path(entry.path) for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
        waiting += sorted(folders, reverse=True)
    return sorted(found)


def _local_file(key: str, value: str, path: Path, folder: Path) -> LocalFile:
    if not path.is_file():
        raise InputError(f"{key}={value!r}: {shown(path)} is a broken link or no regular file")
    kind = read_kind(path)
    if kind is None:
        endings, packed = ", ".join(KINDS), ", ".join(COMPRESSIONS)
        raise InputError(f"{key}={value!r}: {shown(path)} is of no kind that is read: {endings}, each also as {packed}")
    return LocalFile(path, *kind, name=shown(path.relative_to(folder)))


def _is_in(path: Path, storage: Path | None) -> bool:
    return storage is not None and path.resolve().is_relative_to(storage.resolve())


def _walk(folder: Path, left_out: Counter[str], storage: Path | None) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders, following links, each folder once, by its first name.

    What may not be read is left out, but for the folder itself.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen:
                left_out[LOOP] += 1
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                paths = [Path(entry.path) for entry in entries]
        except OSError:
            if here == folder:
                raise
            left_out[UNREADABLE] += 1
            continue
        for path in sorted(paths, reverse=True):  # the last of `waiting` is the next
            if path.name.startswith("."):
                left_out[HIDDEN] += 1
                continue
            try:
                is_folder, is_file = path.is_dir(), path.is_file()
            except OSError:  # as of a link into a folder that may not be entered
                left_out[UNREADABLE] += 1
                continue
            if is_folder:
                if _is_in(path, storage):
                    left_out[STORAGE] += 1
                else:
                    waiting.append(path)
            elif not is_file:
                left_out[BROKEN if path.is_symlink() else SPECIAL] += 1
            elif read_kind(path) is None:
                left_out[shown(Path(path.suffix.lower())) if path.suffix else "without an ending"] += 1
            elif not os.access(path, os.R_OK):
                left_out[UNREADABLE] += 1
            else:
                yield path


def _why(left_out: Counter[str]) -> str:
    return f"; left out: {in_words(left_out)}" if left_out else ""


def in_words(left_out: Mapping[str, int]) -> str:
    """Return what was left out, as `3 hidden, 2 .jpg`."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
