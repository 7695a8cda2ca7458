"""The splits of a frozen corpus: parquet files of the text, and the lists of its documents."""

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict

from textgen.errors import InputError
from textgen.files import naming_the_file, sha256_file
from textgen.sections import SPLITS, TEXT_COLUMN, DataConfig
from textgen.text.documents import CUT_WORDS, Content, Part
from textgen.text.local_files import LocalText
from textgen.text.readers import check_row
from textgen.text.splitting import Census, SourceDocuments, split_documents

if TYPE_CHECKING:
    import pyarrow
    from datasets import DatasetDict

READ_ROWS = 10_000
WRITE_CHARACTERS = 1 << 22  # of text that are one row group


class RawSplit(BaseModel):
    """One split of the frozen text: a parquet file with a `text` column, and what it holds.

    Of local files, a document is in one or more rows of the file, the first of which `begins` it; a second file lists
    the documents. `rows` counts what is tokenized as a whole: documents, or the rows of tables whose splits are given.
    Of other sources, it counts the rows, and `documents` is null.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    sha256: str
    bytes: int  # of the file
    rows: int
    words: int  # separated by whitespace
    text_bytes: int  # of the text in UTF-8
    documents: int | None = None
    documents_file: str | None = None  # the file, place there, content's hash, words and bytes of each document
    documents_sha256: str | None = None


class Reading(BaseModel):
    """What was read of local files, and what was left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, int]  # by kind
    left_out: dict[str, int] = {}  # of folders, by reason
    empty: int = 0  # documents without a word
    copies: int = 0  # documents whose words another document has, kept once
    cut: bool = False  # whether long files were cut,
    cut_words: int = CUT_WORDS  # and into documents of about how many words
    by_row: bool = False  # whether each row is tokenized on its own: of tables whose splits are given


def freeze_files(text: LocalText, data: DataConfig, folder: Path) -> tuple[dict[str, RawSplit], Reading]:
    """Write the splits of local files, and return them and what was read.

    Raises:
        InputError: a file cannot be read or was changed meanwhile, no file has the separator, or a split is empty.
    """
    documents, census = split_documents(text, data)
    splits = write_splits(documents, census, folder)
    kinds = Counter(one.file.kind for one in text.files)
    return splits, Reading(
        files=kinds, left_out=dict(text.left_out), empty=census.count(Census.EMPTY),
        copies=census.count(Census.COPY), cut=documents.cut_words is not None,
        cut_words=documents.cut_words or CUT_WORDS, by_row=documents.by_row,
    )  # fmt: skip


def write_splits(documents: SourceDocuments, census: Census, folder: Path) -> dict[str, RawSplit]:
    """Write each split's text and the list of its documents, and return what they hold."""
    split_of = census.splits_D.tobytes()
    with ExitStack() as stack:
        writers = [stack.enter_context(SplitWriter(folder, split, documents.by_row)) for split in SPLITS]
        writer, file, number, place = None, None, -1, 0
        for one, part in documents.parts():
            if part.begins:
                number, place, file = number + 1, place + 1 if one is file else 1, one
                known = number < len(split_of)  # but of a file that was changed since, of which its reader will tell
                writer = writers[split_of[number]] if known and split_of[number] < len(SPLITS) else None
            if writer is not None:
                writer.add(part, one.file.name, place)
    return {split: writer.written for split, writer in zip(SPLITS, writers, strict=True)}


def text_schema() -> "pyarrow.Schema":
    """Return the columns of a split's text."""
    import pyarrow

    return pyarrow.schema({"text": pyarrow.string(), "begins": pyarrow.bool_()})


def documents_schema() -> "pyarrow.Schema":
    """Return the columns of the list of a split's documents: where each is from, its content's hash, and its size."""
    import pyarrow

    return pyarrow.schema({
        "file": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), "number": pyarrow.int32(),
        "hash": pyarrow.uint64(), "words": pyarrow.int64(), "bytes": pyarrow.int64(),
    })  # fmt: skip


class SplitWriter:
    """Writes the parquet files of a split, WRITE_CHARACTERS at a time."""

    def __init__(self, folder: Path, split: str, by_row: bool) -> None:
        self.by_row = by_row
        self.path, self.documents_path = folder / f"{split}.parquet", folder / f"{split}.documents.parquet"
        self.documents = self.rows = self.words = self.text_bytes = self._size = 0
        self._texts: list[str] = []
        self._begins: list[bool] = []
        self._rows: list[dict[str, object]] = []
        self._content, self._name = Content(), ("", 0)

    def __enter__(self) -> Self:
        import pyarrow.parquet

        self._text = pyarrow.parquet.ParquetWriter(self.path, text_schema(), use_dictionary=False)
        self._list = pyarrow.parquet.ParquetWriter(self.documents_path, documents_schema())
        return self

    def add(self, part: Part, file: str, number: int) -> None:
        """Add a part of the document that is the `number`th of `file`."""
        if part.begins:
            self._end_document()
            self._content, self._name = Content(), (file, number)
            self.documents += 1
        self.rows += 1
        self._content.add(part.text)
        self._texts.append(part.text)
        self._begins.append(part.begins)
        self._size += len(part.text)
        if self._size >= WRITE_CHARACTERS:
            self._write()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with naming_the_file(self.path):
            if kind is None:
                self._end_document()
                self._write()
            self._text.close()
            self._list.close()
        if kind is None:
            for path in (self.path, self.documents_path):
                path.chmod(0o444)
            self.written = RawSplit(
                file=self.path.name, sha256=sha256_file(self.path), bytes=self.path.stat().st_size,
                rows=self.rows if self.by_row else self.documents,
                words=self.words, text_bytes=self.text_bytes, documents=self.documents,
                documents_file=self.documents_path.name, documents_sha256=sha256_file(self.documents_path),
            )  # fmt: skip

    def _end_document(self) -> None:
        if self.documents:
            content, (file, number) = self._content, self._name
            self.words, self.text_bytes = self.words + content.words, self.text_bytes + content.bytes
            self._rows.append({
                "file": file, "number": number, "hash": content.hash, "words": content.words, "bytes": content.bytes,
            })  # fmt: skip

    def _write(self) -> None:
        import pyarrow

        table = pyarrow.table({"text": self._texts, "begins": self._begins}, schema=text_schema())
        with naming_the_file(self.path):
            self._text.write_table(table)
            self._list.write_table(pyarrow.Table.from_pylist(self._rows, schema=documents_schema()))
        self._texts, self._begins, self._rows, self._size = [], [], [], 0


def freeze_dataset(dataset: "DatasetDict", folder: Path, column: str) -> dict[str, RawSplit]:
    """Write a column of each split of a dataset, as it is, as a read-only parquet file, and return what they hold.

    Raises:
        InputError: a split or the column is missing, a split is empty, or a row is no text.
    """
    from datasets import Value

    if missing := [split for split in SPLITS if split not in dataset]:
        raise InputError(f"data: no {' and no '.join(missing)} split; there are {', '.join(dataset)}")
    splits: dict[str, RawSplit] = {}
    for split in SPLITS:
        rows = dataset[split]
        if column not in rows.column_names:
            there = ", ".join(rows.column_names)
            raise InputError(f"data: the {split} split has no column `{column}` (data.text_column); it has {there}")
        if rows.features[column] not in (Value("string"), Value("large_string")):
            kind = getattr(rows.features[column], "dtype", "no plain column")
            raise InputError(f"data: the {split} split, row 1: `{column}` is {kind}; a string is needed")
        rows = rows.select_columns(column)
        if column != TEXT_COLUMN:
            rows = rows.rename_column(column, TEXT_COLUMN)
        path = folder / f"{split}.parquet"
        with naming_the_file(path):
            rows.to_parquet(path)
        number = words = text_bytes = 0
        for batch in rows.iter(READ_ROWS):
            for text in batch[TEXT_COLUMN]:
                number += 1
                check_row(text, f"data: the {split} split, row {number}", column)
                words += len(text.split())
                text_bytes += len(text.encode())
        if text_bytes == 0:
            raise InputError(f"data: the {split} split is empty")
        path.chmod(0o444)
        splits[split] = RawSplit(
            file=path.name, sha256=sha256_file(path), bytes=path.stat().st_size, rows=len(rows), words=words,
            text_bytes=text_bytes,
        )  # fmt: skip
    return splits
