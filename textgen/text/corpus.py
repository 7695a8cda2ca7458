"""Raw text: fetch it from the Hub, a folder, files or Python's own docstrings; freeze it in data/raw; verify it."""

import ast
import codecs
import functools
import glob
import hashlib
import os
import re
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from textgen.config import EMBEDDED_CORPUS, SPLITS, DataConfig
from textgen.errors import Damaged, InputError
from textgen.files import Manifest, build_once, content_key, sha256_file
from textgen.hub import ANSWER_SECONDS, PIN_FILE, ask_hub, pin, pinned

if TYPE_CHECKING:
    from datasets import DatasetDict

RAW_VERSION = 1  # of the frozen form; a change makes every raw key new
CORPUS_WAYS_ON = (
    "data.path=FOLDER for a local copy in Hub layout, "
    f"or data.dataset_name={EMBEDDED_CORPUS} for the embedded corpus, which needs no network"
)
READ_BYTES = 1 << 20
READ_ROWS = 10_000
TEXT_ENDINGS = (".txt", ".text", ".md")

# The embedded corpus leaves out what is no library documentation: tests, an application, demos, bundled wheels.
STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)  # and what holds statements
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
NOT_DOCUMENTATION = {
    "__pycache__", "ensurepip", "idle_test", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests",
    "turtledemo",
}  # fmt: skip
MODULES_IN_A_HAND = 20  # modules are dealt by size, so that every split has long ones and short ones:
SPLIT_OF_CARD = {9: "validation", 10: "test"}  # one in 20 to validation, one to test, the others to train


class RawSplit(BaseModel):
    """One split of the frozen text: a parquet file with a `text` column, and what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    sha256: str
    bytes: int  # of the file
    rows: int
    words: int  # separated by whitespace
    text_bytes: int  # of the text in UTF-8


class RawManifest(Manifest):
    """A frozen corpus: its source with the pinned revision, and its splits."""

    name: str
    source: dict[str, Any]
    splits: dict[str, RawSplit]

    def sha256_by_file(self) -> dict[str, str]:
        return {split.file: split.sha256 for split in self.splits.values()}

    @property
    def revision(self) -> str | None:
        """The Hub commit that the text comes from."""
        return self.source.get("revision")


def fetch(data: DataConfig, root: Path, refresh: bool = False) -> RawManifest:
    """Freeze the corpus under `root`/raw and return its manifest; a corpus that is there already is only verified.

    With `refresh` the Hub is asked which commit a branch or a tag is at now, and that one is pinned.

    Raises:
        InputError: the local source is absent, empty, not UTF-8, or lacks a split or the column `text`.
        SourceUnavailable: the Hub did not give it.
    """
    source = describe_source(data, root, refresh)
    if source["kind"] == "hub" and source["revision"] is None:
        source = {**source, "revision": _resolve_commit(data)}
    folder = _folder(source, root)

    def freeze(temporary: Path) -> RawManifest:
        with tempfile.TemporaryDirectory(dir=temporary.parent, prefix=".download-") as cache:
            splits = _freeze_splits(_load(source, data, cache), temporary)
        return RawManifest(key=folder.name, name=folder.parent.name, source=source, splits=splits)

    manifest = build_once(folder, RawManifest, freeze)
    if source["kind"] == "hub":
        pin(folder.parent, data.revision, source["revision"])
    return manifest


def raw_folder(data: DataConfig, root: Path, refresh: bool = False) -> Path | None:
    """Return where `fetch` freezes the corpus, asking no network: None where the Hub has to be asked for its commit.

    Raises:
        InputError: a local file is absent, empty or not UTF-8.
    """
    source = describe_source(data, root, refresh)
    return None if source["kind"] == "hub" and source["revision"] is None else _folder(source, root)


def pin_file(data: DataConfig, root: Path) -> Path | None:
    """Return the file that pins the commits of a Hub dataset, None for text that is not from the Hub."""
    from_hub = data.files is None and data.path is None and data.dataset_name != EMBEDDED_CORPUS
    return _folder(_hub_source(data), root).parent / PIN_FILE if from_hub else None


def describe_source(data: DataConfig, root: Path, refresh: bool = False) -> dict[str, Any]:
    """Return what identifies the text before it is read: sha256 of local files, or the Hub's name and pinned commit.

    With `refresh` no pin counts but a commit that the configuration names.

    Raises:
        InputError: a local file is absent, empty or not UTF-8.
    """
    if data.files is not None:
        found = {split: _match(split, data.files[split]) for split in SPLITS}
        sha256s = {split: [_sha256_source(path) for path in paths] for split, paths in found.items()}
        return {"kind": "files", "files": sha256s}
    if data.path is not None:
        folder = Path(data.path)
        if not folder.is_dir():
            raise InputError(f"data.path={data.path!r}: there is no such folder")
        paths = sorted(p for p in folder.rglob("*") if p.is_file() and not any(s.startswith(".") for s in p.parts[1:]))
        sha256s = {path.relative_to(folder).as_posix(): _sha256_source(path) for path in paths}
        return {
            "kind": "folder", "folder": folder.resolve().name, "dataset_config": data.dataset_config, "files": sha256s,
        }  # fmt: skip
    if data.dataset_name == EMBEDDED_CORPUS:
        modules = {name: sha256_file(path) for name, path in standard_library().items()}
        return {"kind": EMBEDDED_CORPUS, "python": sys.version.split()[0], "modules_sha256": content_key(modules)}
    source = _hub_source(data)
    commit = pinned(_folder(source, root).parent, data.revision)
    return {**source, "revision": None if refresh and commit != data.revision else commit}


def find_raw(root: Path, sha256: dict[str, str]) -> RawManifest:
    """Return the frozen corpus under `root`/raw whose splits have these sha256, verified.

    Raises:
        InputError: there is none.
    """
    for file in sorted(root.glob(f"raw/*/*/{RawManifest.FILE}")):
        with suppress(Damaged):  # or of another kind, as GPT-2's tokenizer
            manifest = RawManifest.parse(file.parent)
            if {name: split.sha256 for name, split in manifest.splits.items()} == sha256:
                return RawManifest.read(file.parent)
    raise InputError(f"{root / 'raw'}: the raw text of the tokens is not there, or no longer what it was")


def read_rows(manifest: RawManifest, split: str) -> list[str]:
    """Return the rows of a split, in order."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(manifest.folder / manifest.splits[split].file, columns=["text"])
    return table.column("text").to_pylist()


def _hub_source(data: DataConfig) -> dict[str, Any]:
    return {"kind": "hub", "dataset_name": data.dataset_name, "dataset_config": data.dataset_config}


def _folder(source: dict[str, Any], root: Path) -> Path:
    name = source.get("dataset_name") or source.get("folder") or source["kind"]
    return root / "raw" / re.sub(r"[^A-Za-z0-9._-]+", "--", name) / content_key(RAW_VERSION, source)


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


def _load(source: dict[str, Any], data: DataConfig, cache: str) -> "DatasetDict":
    """Read the source through `datasets`; `cache` is a folder of its own, so that no stale copy can answer."""
    from datasets import Dataset, DatasetDict, load_dataset

    match source["kind"]:
        case "python-docs":
            return DatasetDict({split: Dataset.from_dict({"text": rows}) for split, rows in python_docs().items()})
        case "files":
            files = {split: [str(path) for path in _match(split, data.files[split])] for split in SPLITS}
            if all(path.endswith(".parquet") for paths in files.values() for path in paths):
                return _read(lambda: load_dataset("parquet", data_files=files, cache_dir=cache))
            return _read(lambda: load_dataset("text", data_files=files, keep_linebreaks=True, cache_dir=cache))
        case "folder":
            return _read(lambda: load_dataset(data.path, data.dataset_config, cache_dir=cache))
        case _:
            name, config, commit = data.dataset_name, data.dataset_config, source["revision"]
            return ask_hub(name, CORPUS_WAYS_ON, lambda: load_dataset(name, config, revision=commit, cache_dir=cache))


def _read(load: Any) -> Any:
    """Call `load` on a local source, and name what is wrong with it in one line."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    try:
        return load()
    except (DatasetGenerationError, DatasetNotFoundError, FileNotFoundError, ValueError) as error:
        cause = error.__cause__ or error
        raise InputError(f"data: {type(cause).__name__}: {' '.join(str(cause).split())}") from error


def _resolve_commit(data: DataConfig) -> str:
    from huggingface_hub import HfApi

    name, revision = data.dataset_name, data.revision
    return ask_hub(
        name, CORPUS_WAYS_ON, lambda: HfApi().dataset_info(name, revision=revision, timeout=ANSWER_SECONDS).sha
    )


def _freeze_splits(dataset: "DatasetDict", folder: Path) -> dict[str, RawSplit]:
    """Write each split as a read-only parquet file with its counts."""
    if missing := [split for split in SPLITS if split not in dataset]:
        raise InputError(f"data: no {' and no '.join(missing)} split; there are {', '.join(dataset)}")
    splits = {}
    for split in SPLITS:
        rows = dataset[split]
        if "text" not in rows.column_names:
            raise InputError(f"data: the {split} split has no column `text`; it has {', '.join(rows.column_names)}")
        path = folder / f"{split}.parquet"
        rows.select_columns("text").to_parquet(path)
        words = text_bytes = 0
        for batch in rows.select_columns("text").iter(READ_ROWS):
            words += sum(len(text.split()) for text in batch["text"])
            text_bytes += sum(len(text.encode()) for text in batch["text"])
        if text_bytes == 0:
            raise InputError(f"data: the {split} split is empty")
        path.chmod(0o444)
        splits[split] = RawSplit(
            file=path.name, sha256=sha256_file(path), bytes=path.stat().st_size, rows=len(rows), words=words,
            text_bytes=text_bytes,
        )  # fmt: skip
    return splits


def standard_library() -> dict[str, Path]:
    """Return the source file of every module of the running interpreter's standard library, by module name."""
    stdlib, modules = Path(sysconfig.get_path("stdlib")), {}
    for folder, subfolders, files in os.walk(stdlib):
        subfolders[:] = set(subfolders) - NOT_DOCUMENTATION  # site-packages may hold fifty times as much
        for file in files:
            path = Path(folder, file)
            parts = path.relative_to(stdlib).with_suffix("").parts
            if path.suffix == ".py" and parts[0] in sys.stdlib_module_names and parts[-1] not in NOT_DOCUMENTATION:
                modules[".".join(parts).removesuffix(".__init__")] = path
    return modules


def python_docs() -> dict[str, list[str]]:
    """Return the docstrings of the standard library, a document a module, in three splits.

    A paragraph appears once in the corpus, and no paragraph of validation or test occurs within the text of train,
    white space aside: what is measured there was not seen.
    """
    modules = {name: list(_paragraphs(path)) for name, path in standard_library().items()}
    sizes = {name: sum(map(len, paragraphs)) for name, paragraphs in modules.items() if paragraphs}
    by_size = sorted(sizes, key=lambda name: (-sizes[name], name))
    documents: dict[str, list[list[str]]] = {split: [] for split in SPLITS}
    for name in sorted(by_size):
        card = by_size.index(name) % MODULES_IN_A_HAND
        documents[SPLIT_OF_CARD.get(card, "train")].append(modules[name])
    train_text = "\n".join(_folded(p) for paragraphs in documents["train"] for p in paragraphs)
    splits, seen = {}, set()
    for split in SPLITS:
        rows = []
        for paragraphs in documents[split]:
            kept = []
            for paragraph in paragraphs:
                folded = _folded(paragraph)
                if folded not in seen and (split == "train" or folded not in train_text):
                    seen.add(folded)
                    kept.append(paragraph)
            if kept:
                rows.append("\n\n".join(kept) + "\n\n")
        splits[split] = rows
    return splits


def _paragraphs(path: Path) -> Iterator[str]:
    """Yield the paragraphs of a module's docstrings, in the order of the source."""
    nodes: list[ast.AST] = [ast.parse(path.read_bytes())]
    for node in nodes:  # grows: statements in statements, but not their expressions, which are most of a module
        nodes += [child for child in ast.iter_child_nodes(node) if isinstance(child, STATEMENTS)]
    documented = [node for node in nodes if isinstance(node, DOCUMENTED)]
    for node in sorted(documented, key=lambda node: getattr(node, "lineno", 0)):
        for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
            if paragraph.strip():
                yield paragraph.strip("\n").rstrip()


def _folded(paragraph: str) -> str:
    return " ".join(paragraph.split())
