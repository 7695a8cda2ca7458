"""Where a corpus comes from, a class a kind: what identifies it, how it is read, and what there is to say of it."""

import functools
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, TypeVar

from textgen.errors import InputError
from textgen.files import content_key, sha256_file
from textgen.hub import ANSWER_SECONDS, ask_hub, pinned
from textgen.sections import EMBEDDED_CORPUS, SPLITS, TEXT_COLUMN, DataConfig, Split
from textgen.storage import Storage
from textgen.text.local_files import Found, LocalFile, LocalText, SplitFile, find_files, find_path, read_kind, shown
from textgen.text.python_docs import python_docs, standard_library
from textgen.text.readers import check_start

if TYPE_CHECKING:
    from datasets import DatasetDict

log = logging.getLogger(__name__)

RAW_VERSION = 1  # of the frozen form; a change makes every raw key new
CORPUS_WAYS_ON = (
    "data.path=FOLDER for a local copy in Hub layout, "
    f"or data.dataset_name={EMBEDDED_CORPUS} for the embedded corpus, which needs no network"
)
FILES_VERSION = 4  # of how local files are read; a change makes the raw keys of local files new
WIKITEXT = "Salesforce/wikitext"
UNKNOWN_LICENCE = "not known to textgen; see its source"

Loaded: TypeAlias = "DatasetDict | LocalText"
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

    def load(self, identity: Identity, cache: str) -> Loaded:
        """Return the text, or the files that hold it.

        Args:
            identity: What `identity` returned.
            cache: A folder of its own for `datasets`, so that no stale copy can answer.

        Raises:
            InputError: what is there cannot be read, or is no longer what it was.
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

    def load(self, identity: Identity, cache: str) -> Loaded:
        from datasets import Dataset, DatasetDict

        _show_no_bars()
        return DatasetDict({split: Dataset.from_dict({"text": rows}) for split, rows in python_docs().items()})

    @staticmethod
    def about(identity: Identity) -> About:
        sentence = f"The docstrings of Python {identity['python']}'s standard library, a row a module."
        return About(EMBEDDED_CORPUS, sentence, "Python Software Foundation License 2.0", "en")


@dataclass(frozen=True)
class Files:
    """A person's own files: one set that is split here, or a set a split."""

    KIND: ClassVar[str] = "files"
    data: DataConfig
    storage: Storage

    def identity(self) -> Identity:
        data, (files, _) = self.data, self._find()
        source: Identity = {
            "kind": self.KIND, "version": FILES_VERSION, "files": {}, "endings": {},
        }  # fmt: skip
        for one in files:
            split = one.split or "all"
            source["files"].setdefault(split, []).append(one.sha256)
            source["endings"].setdefault(split, []).append(f"{one.file.kind}{one.file.compression or ''}")
        if any(one.file.has_rows for one in files):
            source["text_column"] = data.text_column
        if not all(one.file.has_rows for one in files):
            source["document"] = data.document
        if not isinstance(data.files, dict):
            source |= {"validation_fraction": data.validation_fraction, "test_fraction": data.test_fraction}
        return source

    def load(self, identity: Identity, cache: str) -> Loaded:
        files, left_out = self._find()
        if [one.sha256 for one in files] != [sha256 for sha256s in identity["files"].values() for sha256 in sha256s]:
            raise InputError("data.files: the files were changed while they were read; start again")
        return LocalText(files, left_out)

    def left_out(self) -> Counter[str]:
        """Return what is left out of the folders now, by reason: no key has it."""
        return sum((found.left_out for _, _, found in self._named()), Counter[str]())

    def _find(self) -> tuple[list[SplitFile], Counter[str]]:
        files: list[SplitFile] = []
        left_out: Counter[str] = Counter()
        for split, key, found in self._named():
            if not any(file.path.stat().st_size for file in found.files):
                raise InputError(f"{key}: the split is empty")
            for file in found.files:
                files.append(SplitFile(file, _sha256_source(file.path), split))
                _check_start(file, self.data.text_column, files[-1].sha256)
            left_out += found.left_out
        return files, left_out

    def _named(self) -> Iterator[tuple[Split | None, str, Found]]:
        """Yield the files of each split that is given, or of all, and the key that names them, with its value."""
        named = self.data.files
        assert named is not None
        by_split: dict[Split | None, str | list[str]] = {None: named} if not isinstance(named, dict) else {}
        if isinstance(named, dict):
            by_split |= {split: named[split] for split in SPLITS}
        for split, values in by_split.items():
            key = "data.files" if split is None else f"data.files.{split}"
            found = find_files(key, [values] if isinstance(values, str) else values, self.storage.local)
            yield split, f"{key}={values!r}", found

    @staticmethod
    def about(identity: Identity) -> About:
        return About(None, "Local files.")


@dataclass(frozen=True)
class HubFolder:
    """A local folder in the layout of a Hub dataset."""

    KIND: ClassVar[str] = "folder"
    data: DataConfig

    @property
    def path(self) -> str:
        assert self.data.path is not None
        return str(find_path(self.data.path)) if self.data.path else ""

    def identity(self) -> Identity:
        folder = Path(self.path)
        if not os.path.isdir(self.path):  # noqa: PTH112  False too where a name is too long
            raise InputError(f"data.path={self.path!r}: there is no such folder")
        sha256s = {path.relative_to(folder).as_posix(): _sha256_source(path) for path in self._files()}
        source: Identity = {
            "kind": self.KIND, "folder": folder.resolve().name, "dataset_config": self.data.dataset_config,
            "files": sha256s,
        }  # fmt: skip
        kinds = {found[0] for path in self._files() if path.suffix != ".md" and (found := read_kind(path))}
        if "text" in kinds:  # which is read here
            source |= {"version": FILES_VERSION, "document": self.data.document}
        return source | _column(self.data.text_column)

    def _files(self) -> list[Path]:
        folder = Path(self.path)
        return sorted(
            path
            for path in folder.rglob("*")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )

    def load(self, identity: Identity, cache: str) -> Loaded:
        from datasets import load_dataset, load_dataset_builder

        _show_no_bars()
        builder = _read(lambda: load_dataset_builder(self.path, self.data.dataset_config, cache_dir=cache))
        files = self._check_files(builder.config.data_files or {}, identity)
        if builder.name == "text":
            return LocalText(files)
        dataset = _read(lambda: load_dataset(self.path, self.data.dataset_config, cache_dir=cache))
        self._check_files(builder.config.data_files or {}, identity)
        return dataset

    def _check_files(self, data_files: Mapping[Any, Sequence[str]], identity: Identity) -> list[SplitFile]:
        """Return the files of the splits, as `datasets` found them.

        Raises:
            InputError: one of them is not in the key, or is no longer what it was.
        """
        known = {(Path(self.path) / name).resolve(): sha256 for name, sha256 in identity["files"].items()}
        for path in (Path(name) for names in data_files.values() for name in names):
            if (sha256 := known.get(path.resolve())) is None:
                read = f"data.path={self.path!r}: {shown(path)} is read"
                raise InputError(f"{read}, but is hidden or outside of the folder")
            if sha256_file(path) != sha256:
                raise InputError(f"{shown(path)}: the file was changed while it was read; start again")
        found = {str(split): list(map(Path, names)) for split, names in data_files.items()}
        return [
            SplitFile(_local_file(path), known[path.resolve()], split)
            for split in SPLITS
            for path in found.get(split, [])
        ]

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
    text_column: str
    storage: Storage
    refresh: bool = False  # no pin counts but a commit that the configuration names

    def identity(self) -> Identity:
        """Return the dataset's name and its commit: None where the Hub has to be asked for it."""
        source = {"kind": self.KIND, "dataset_name": self.dataset_name, "dataset_config": self.dataset_config}
        source |= _column(self.text_column)
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

    def load(self, identity: Identity, cache: str) -> Loaded:
        from datasets import load_dataset

        _show_no_bars()
        name, config, commit = self.dataset_name, self.dataset_config, identity["revision"]
        log.info("reading %s from the Hugging Face Hub", name)
        return ask_hub(name, CORPUS_WAYS_ON, lambda: load_dataset(name, config, revision=commit, cache_dir=cache))

    @staticmethod
    def about(identity: Identity) -> About:
        name, commit = identity["dataset_name"], identity["revision"]
        sentence = f"`{name}` from the Hugging Face Hub{_configuration(identity)}, commit `{commit}`."
        return About(name, sentence, "CC BY-SA 3.0 and GFDL", "en") if name == WIKITEXT else About(name, sentence)


def _column(name: str) -> Identity:
    """Return what a source says of the column that is read, which is `text` where it says nothing."""
    return {} if name == TEXT_COLUMN else {"text_column": name}


def choose_source(data: DataConfig, storage: Storage, refresh: bool = False) -> Source:
    """Return the source that the configuration names."""
    if data.files is not None:
        return Files(data, storage)
    if data.path is not None:
        return HubFolder(data)
    if data.dataset_name == EMBEDDED_CORPUS:
        return PythonDocs()
    return HubDataset(data.dataset_name, data.dataset_config, data.revision, data.text_column, storage, refresh)


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


def _local_file(path: Path) -> LocalFile:
    kind, compression = read_kind(path) or ("text", None)
    return LocalFile(path, kind, compression, shown(Path(path.name)))


def _sha256_source(path: Path) -> str:
    try:
        status = path.stat()
        return _sha256_unchanged(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise InputError(f"{shown(path)}: {error.strerror}") from None


@functools.cache
def _sha256_unchanged(path: Path, size: int, mtime_ns: int) -> str:
    """Return the sha256 of a source file, read once a process while its size and time stay."""
    return sha256_file(path)


@functools.cache
def _check_start(file: LocalFile, column: str, sha256: str) -> None:
    """Check that a file begins as its ending says, once a process while it is as it is."""
    check_start(file, column)


def _show_no_bars() -> None:
    """Have `datasets` show no progress bars in this process: the stage has its own line."""
    from datasets import disable_progress_bars

    disable_progress_bars()


def _read(load: Callable[[], T]) -> T:
    """Call `load` on a local source, and name what is wrong with it in one line."""
    from datasets.exceptions import DatasetsError
    from yaml import YAMLError

    try:
        return load()
    except (DatasetsError, OSError, ValueError, TypeError, KeyError, RuntimeError, YAMLError) as error:
        cause = error.__cause__ or error
        raise InputError(f"data: {type(cause).__name__}: {' '.join(str(cause).split())}") from error
