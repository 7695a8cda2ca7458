"""Local files as parts of documents, each read by its kind, streamed, and checked to be the bytes that were hashed."""

import bz2
import codecs
import csv
import gzip
import hashlib
import io
import json
import lzma
import sys
import tempfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from textgen.errors import InputError
from textgen.files import sha256_file
from textgen.terminal import brief, one_line
from textgen.text.documents import PART_CHARACTERS, lines_of
from textgen.text.local_files import LocalFile

READ_BYTES = 1 << 20
BATCH_ROWS = 100  # of parquet in memory at once
BYTE_ORDER_MARK = "\ufeff"
CHECKED_ROWS = 1000  # of a table, before a run starts
MOST_UNPACKED = 1000  # times a compressed file's size
TOO_MUCH = "it unpacks to over {:,} times its size"
BROKEN_ARCHIVE = (OSError, EOFError, zlib.error, lzma.LZMAError)
NO_JSON = (ValueError, RecursionError)


class Hashed(io.RawIOBase):
    """A binary file that is read from start to end, and the sha256 of what was read of it."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb")
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with the next bytes and return how many there were."""
        count = self.file.readinto(buffer)
        self.sha256.update(memoryview(buffer)[:count])
        return count

    def rest(self) -> str:
        """Read to the end and return the sha256 of the whole file."""
        while chunk := self.file.read(READ_BYTES):
            self.sha256.update(chunk)
        return self.sha256.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        super().close()


def read_text(file: LocalFile, sha256: str | None) -> Generator[str, None, None]:
    """Yield the text of a plain file in pieces of PART_CHARACTERS; a byte order mark at its start is removed.

    A file of no bytes has no piece.

    Raises:
        InputError: it is not UTF-8, does not unpack, or is no longer the file of this sha256.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _opened(file, sha256) as stream:
        text, position, at_start = "", 0, True
        while True:
            chunk = stream.read(READ_BYTES)
            try:
                text += decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                place = max(0, position + error.start - (len(error.object) - len(chunk)))
                raise InputError(f"{file}: the text is not UTF-8 near byte {place}") from None
            position += len(chunk)
            if at_start and text:
                text, at_start = text.removeprefix(BYTE_ORDER_MARK), False
            whole = len(text) if not chunk else len(text) - len(text) % PART_CHARACTERS
            for start in range(0, whole, PART_CHARACTERS):
                yield text[start : start + PART_CHARACTERS]
            text = text[whole:]
            if not chunk:
                return


def read_table(file: LocalFile, sha256: str | None, column: str) -> Generator[str, None, None]:
    """Yield the rows of a table as the text in `column`. A file of no bytes, packed or unpacked, has no row.

    Raises:
        InputError: the table or a row cannot be read, lacks the column, or has something there that is no text; or the
            file is no longer that of this sha256.
    """
    readers = {"jsonl": _read_jsonl, "csv": _read_csv, "tsv": _read_csv, "parquet": _read_parquet}
    for number, value in enumerate(readers[file.kind](file, sha256, column), 1):
        yield check_row(value, f"{file}, row {number}", column)


def check_start(file: LocalFile, column: str) -> None:
    """Check that a file begins as its ending says.

    Raises:
        InputError: it does not.
    """
    rows = read_table(file, None, column) if file.has_rows else read_text(file, None)
    with closing(rows):
        for _ in zip(range(CHECKED_ROWS if file.has_rows else 1), rows, strict=False):
            pass


def check_row(value: object, place: str, column: str) -> str:
    """Return the text of a row.

    Raises:
        InputError: it is no text that UTF-8 can hold.
    """
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise InputError(f"{place}: `{column}` is {kind}; a string is needed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: `{column}` is not text: half of a surrogate pair at {error.start}") from None
    return value


def _read_jsonl(file: LocalFile, sha256: str | None, column: str) -> Iterator[object]:
    names: list[str] = []

    def note_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal names
        names = [name for name, _ in pairs]  # at last those of the row, which ends after the objects in it
        return dict(pairs)

    decoder = json.JSONDecoder(object_pairs_hook=note_names)
    for number, line in enumerate(lines_of(read_text(file, sha256)), 1):
        if not line.strip():
            continue
        try:
            row = decoder.decode(line)
        except NO_JSON as error:
            reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
            raise InputError(f"{file}, line {number}: not JSON: {reason}") from None
        if not isinstance(row, dict):
            raise InputError(f"{file}, line {number}: {type(row).__name__} where an object was expected")
        _check_column(names, f"{file}, line {number}", column)
        yield row[column]


def _read_csv(file: LocalFile, sha256: str | None, column: str) -> Iterator[object]:
    csv.field_size_limit(sys.maxsize)
    rows = csv.reader(lines_of(read_text(file, sha256)), strict=True, delimiter="\t" if file.kind == "tsv" else ",")
    try:
        if (names := next(rows, None)) is None:
            return
        _check_column(names, f"{file}, the first line", column)
        place = names.index(column)
        for row in rows:
            if not row:
                continue  # an empty line
            if len(row) != len(names):
                where = f"{file}, line {rows.line_num}"
                raise InputError(f"{where}: {len(row)} fields where the first line has {len(names)}")
            yield row[place]
    except csv.Error as error:
        said = "a carriage return alone ends no line" if "universal-newline" in str(error) else error
        raise InputError(f"{file}, line {rows.line_num}: not {file.kind.upper()}: {said}") from None


def _read_parquet(file: LocalFile, sha256: str | None, column: str) -> Iterator[object]:
    import pyarrow
    import pyarrow.parquet

    with _unpacked(file, sha256) as path:
        try:
            if path.stat().st_size == 0:
                return
            table = pyarrow.parquet.ParquetFile(path)
            _check_column(table.schema_arrow.names, str(file), column)
            kind = table.schema_arrow.field(column).type
            if is_dictionary := pyarrow.types.is_dictionary(kind):
                kind = kind.value_type
            if kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
                raise InputError(f"{file}, row 1: `{column}` is {kind}; a string is needed")
            left = MOST_UNPACKED * path.stat().st_size
            for batch in table.iter_batches(BATCH_ROWS, columns=[column]):
                texts = batch.column(0).dictionary_decode() if is_dictionary else batch.column(0)
                if (left := left - texts.nbytes) < 0:
                    raise InputError(f"{file}: {TOO_MUCH.format(MOST_UNPACKED)}")
                yield from texts.to_pylist()
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: not parquet: {one_line(error)}") from None


def _check_column(there: Sequence[str], place: str, column: str) -> None:
    if there.count(column) != 1:
        many = "several columns" if column in there else "no column"
        shown = ", ".join(map(brief, there[:10])) or "none"
        raise InputError(f"{place}: {many} {column!r} (data.text_column); it has {shown}")


@contextmanager
def _opened(file: LocalFile, sha256: str | None) -> Iterator[IO[bytes]]:
    """Yield the file's unpacked bytes; check after the block that they were those of this sha256, where one is given.

    Raises:
        InputError: it cannot be opened or unpacked, unpacks to too much, or was changed meanwhile.
    """
    try:
        hashed = Hashed(file.path)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None
    try:
        yield cast(IO[bytes], Bounded(file, io.BufferedReader(hashed, READ_BYTES)))
        if sha256 is not None and hashed.rest() != sha256:
            raise InputError(f"{file}: the file was changed while it was read; start again")
    finally:
        hashed.close()


class Bounded:
    """The unpacked bytes of a file, up to MOST_UNPACKED times its size."""

    def __init__(self, file: LocalFile, packed: IO[bytes]) -> None:
        size = file.path.stat().st_size
        self.file, self.stream, self.left = file, _unpacking(file, packed) if size else packed, None
        if file.compression is not None:
            self.left = MOST_UNPACKED * size

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer only at the end.

        Raises:
            InputError: the file does not unpack, or unpacks to too much.
        """
        try:
            chunks = []
            while size and (chunk := self.stream.read(size)):
                chunks.append(chunk)
                size -= len(chunk)
        except BROKEN_ARCHIVE as error:
            what = "cannot be read" if self.file.compression is None else f"not a {self.file.compression} file"
            raise InputError(f"{self.file}: {what}: {one_line(error)}") from None
        data = b"".join(chunks)
        if self.left is not None:
            self.left -= len(data)
            if self.left < 0:
                raise InputError(f"{self.file}: {TOO_MUCH.format(MOST_UNPACKED)}")
        return data


def _unpacking(file: LocalFile, packed: IO[bytes]) -> Any:
    match file.compression:
        case ".gz":
            return gzip.GzipFile(fileobj=packed)
        case ".bz2":
            return bz2.BZ2File(packed)
        case ".xz":
            return lzma.LZMAFile(packed)
        case ".zst":
            import pyarrow

            return pyarrow.CompressedInputStream(pyarrow.PythonFile(packed, mode="r"), "zstd")
    return packed


@contextmanager
def _unpacked(file: LocalFile, sha256: str | None) -> Iterator[Path]:
    """Yield the path of the file unpacked; check after the block that it was the file of this sha256."""
    if file.compression is None:
        yield file.path
        if sha256 is not None and sha256_file(file.path) != sha256:
            raise InputError(f"{file}: the file was changed while it was read; start again")
        return
    with tempfile.NamedTemporaryFile(suffix=".parquet") as temporary:
        with _opened(file, sha256) as stream:
            while chunk := stream.read(READ_BYTES):
                temporary.write(chunk)
        temporary.flush()
        yield Path(temporary.name)
