"""Where a corpus comes from, a class a kind: what identifies it, how it is read, and what there is to say of it."""

import codecs
import functools
import glob
import hashlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from textgen.config import EMBEDDED_CORPUS, SPLITS, DataConfig, Split
from textgen.errors import InputError
from textgen.files import content_key, sha256_file
from textgen.hub import ANSWER_SECONDS, ask_hub, pinned
from textgen.storage import Storage
from textgen.text.python_docs import python_docs, standard_library

if TYPE_CHECKING:
    from datasets import DatasetDict

RAW_VERSION = 1  # of the frozen form; a change makes every raw key new
CORPUS_WAYS_ON = (
    "data.path=FOLDER for a local copy in Hub layout, "
    f"or data.dataset_name={EMBEDDED_CORPUS} for the embedded corpus, which needs no network"
)
READ_BYTES = 1 << 20
TEXT_ENDINGS = (".txt", ".text", ".md")
WIKITEXT = "Salesforce/wikitext"
UNKNOWN_LICENCE = "not known to textgen; see its source"

Identity = dict[str, Any]  # what a raw key is made of; a frozen corpus keeps it as its `source`
T = TypeVar("T")


@dataclass(frozen=True)
class About:
    """What a model card says of a corpus."""

    name: str | None  # on the Hub, or of the embedded corpus
    sentence: str  # on where it comes from
    licence: str = UNKNOWN_LICENCE
    language: str | None = None


class Source(Protocol):
    """A kind of corpus."""

    KIND: ClassVar[str]

    def identity(self) -> Identity:
        """Return what identifies the text before it is read.

        Raises:
            InputError: a local file or folder is absent, empty or not UTF-8.
        """
        ...

    def load(self, identity: Identity, cache: str) -> "DatasetDict":
        """Read the text through `datasets`; `cache` is a folder of its own, so that no stale copy can answer.

        Raises:
            InputError: what is there cannot be read.
            SourceUnavailable: the Hub did not give it.
        """
        ...

    @staticmethod
    def about(identity: Identity) -> About:
        """Return what there is to say of a corpus of this kind."""
        ...


@dataclass(frozen=True)
class PythonDocs:
    """The embedded corpus, of the interpreter that runs."""

    KIND: ClassVar[str] = EMBEDDED_CORPUS

    def identity(self) -> Identity:
        modules = {name: sha256_file(path) for name, path in standard_library().items()}
        return {"kind": self.KIND, "python": sys.version.split()[0], "modules_sha256": content_key(modules)}

    def load(self, identity: Identity, cache: str) -> "DatasetDict":
        from datasets import Dataset, DatasetDict

        return DatasetDict({split: Dataset.from_dict({"text": rows}) for split, rows in python_docs().items()})

    @staticmethod
    def about(identity: Identity) -> About:
        sentence = f"The docstrings of Python {identity['python']}'s standard library, a row a module."
        return About(EMBEDDED_CORPUS, sentence, "Python Software Foundation License 2.0", "en")


@dataclass(frozen=True)
class Files:
    """A person's own files: a glob of text or parquet files a split."""

    KIND: ClassVar[str] = "files"
    patterns: dict[Split, str]

    def identity(self) -> Identity:
        found = {split: _match(split, self.patterns[split]) for split in SPLITS}
        sha256s = {split: [_sha256_source(path) for path in paths] for split, paths in found.items()}
        return {"kind": self.KIND, "files": sha256s}

    def load(self, identity: Identity, cache: str) -> "DatasetDict":
        from datasets import load_dataset

        files: dict[str, list[str]] = {
            split: [str(path) for path in _match(split, self.patterns[split])] for split in SPLITS
        }
        if all(path.endswith(".parquet") for paths in files.values() for path in paths):
            return _read(lambda: load_dataset("parquet", data_files=files, cache_dir=cache))
        return _read(lambda: load_dataset("text", data_files=files, keep_linebreaks=True, cache_dir=cache))

    @staticmethod
    def about(identity: Identity) -> About:
        return About(None, "Local files.")


@dataclass(frozen=True)
class HubFolder:
    """A local folder in the layout of a Hub dataset."""

    KIND: ClassVar[str] = "folder"
    path: str
    dataset_config: str | None

    def identity(self) -> Identity:
        folder = Path(self.path)
        if not folder.is_dir():
            raise InputError(f"data.path={self.path!r}: there is no such folder")
        paths = sorted(p for p in folder.rglob("*") if p.is_file() and not any(s.startswith(".") for s in p.parts[1:]))
        sha256s = {path.relative_to(folder).as_posix(): _sha256_source(path) for path in paths}
        return {
            "kind": self.KIND, "folder": folder.resolve().name, "dataset_config": self.dataset_config,
            "files": sha256s,
        }  # fmt: skip

    def load(self, identity: Identity, cache: str) -> "DatasetDict":
        from datasets import load_dataset

        return _read(lambda: load_dataset(self.path, self.dataset_config, cache_dir=cache))

    @staticmethod
    def about(identity: Identity) -> About:
        return About(None, f"The local folder `{identity['folder']}`{_configuration(identity)}.")


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the Hugging Face Hub, at the commit that its revision was first resolved to."""

    KIND: ClassVar[str] = "hub"
    dataset_name: str
    dataset_config: str | None
    revision: str | None
    storage: Storage
    refresh: bool = False  # no pin counts but a commit that the configuration names

    def identity(self) -> Identity:
        """Return the dataset's name and its commit: None where the Hub has to be asked for it."""
        source = {"kind": self.KIND, "dataset_name": self.dataset_name, "dataset_config": self.dataset_config}
        commit = pinned(self.home, self.revision)
        return {**source, "revision": None if self.refresh and commit != self.revision else commit}

    @property
    def home(self) -> Path:
        """The folder of the dataset's commits, which has the pins too."""
        return self.storage.raw(_folder_name(self.dataset_name))

    def resolve_commit(self) -> str:
        """Return the commit that the revision is at now, as the Hub says.

        Raises:
            SourceUnavailable: the Hub did not say.
        """
        from huggingface_hub import HfApi

        name, revision = self.dataset_name, self.revision
        commit = ask_hub(
            name, CORPUS_WAYS_ON, lambda: HfApi().dataset_info(name, revision=revision, timeout=ANSWER_SECONDS).sha
        )
        assert commit is not None
        return commit

    def load(self, identity: Identity, cache: str) -> "DatasetDict":
        from datasets import load_dataset

        name, config, commit = self.dataset_name, self.dataset_config, identity["revision"]
        return ask_hub(name, CORPUS_WAYS_ON, lambda: load_dataset(name, config, revision=commit, cache_dir=cache))

    @staticmethod
    def about(identity: Identity) -> About:
        name, commit = identity["dataset_name"], identity["revision"]
        sentence = f"`{name}` from the Hugging Face Hub{_configuration(identity)}, commit `{commit}`."
        return About(name, sentence, "CC BY-SA 3.0 and GFDL", "en") if name == WIKITEXT else About(name, sentence)


def choose_source(data: DataConfig, storage: Storage, refresh: bool = False) -> Source:
    """Return the source that the configuration names."""
    if data.files is not None:
        return Files(dict(data.files))
    if data.path is not None:
        return HubFolder(data.path, data.dataset_config)
    if data.dataset_name == EMBEDDED_CORPUS:
        return PythonDocs()
    return HubDataset(data.dataset_name, data.dataset_config, data.revision, storage, refresh)


def about(identity: Identity) -> About:
    """Return what there is to say of a frozen corpus, by its `source`."""
    kinds: tuple[type[Source], ...] = (PythonDocs, Files, HubFolder, HubDataset)
    return {kind.KIND: kind for kind in kinds}[identity["kind"]].about(identity)


def raw_home(identity: Identity, storage: Storage) -> Path:
    """Return the folder of the frozen corpus."""
    name = identity.get("dataset_name") or identity.get("folder") or identity["kind"]
    return storage.raw(_folder_name(name)) / content_key(RAW_VERSION, identity)


def _folder_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "--", name)


def _configuration(identity: Identity) -> str:
    return f", configuration `{identity['dataset_config']}`" if identity["dataset_config"] else ""


def _match(split: str, pattern: str) -> list[Path]:
    paths = [path for path in map(Path, sorted(glob.glob(pattern, recursive=True))) if path.is_file()]  # noqa: PTH207
    if not paths:
        raise InputError(f"data.files.{split}={pattern!r}: no file matches")
    if all(path.stat().st_size == 0 for path in paths):
        raise InputError(f"data.files.{split}={pattern!r}: the split is empty")
    return paths


def _sha256_source(path: Path) -> str:
    status = path.stat()
    return _sha256_unchanged(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _sha256_unchanged(path: Path, size: int, mtime_ns: int) -> str:
    """Return the sha256 of a source file, read once a process while its size and time stay; text must be UTF-8."""
    digest, decode = hashlib.sha256(), None
    if path.suffix in TEXT_ENDINGS:
        decode = codecs.getincrementaldecoder("utf-8")().decode
    position = 0
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
            if decode is not None:
                try:
                    decode(chunk, final=position + len(chunk) == size)
                except UnicodeDecodeError as error:
                    raise InputError(f"{path}: the text is not UTF-8 near byte {position + error.start}") from None
            position += len(chunk)
    return digest.hexdigest()


def _read(load: Callable[[], T]) -> T:
    """Call `load` on a local source, and name what is wrong with it in one line."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    try:
        return load()
    except (DatasetGenerationError, DatasetNotFoundError, FileNotFoundError, ValueError) as error:
        cause = error.__cause__ or error
        raise InputError(f"data: {type(cause).__name__}: {' '.join(str(cause).split())}") from error
