"""Files that can be trusted: atomic writes, manifests that notice a changed byte, folders built once."""

import errno
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

from tests.waiting import PATIENCE_SECONDS, until
from textgen.errors import Damaged
from textgen.files import Manifest, build_once, naming_the_file, new_folder, remove, sha256_file, write_atomic


class Notes(Manifest):
    sha256: dict[str, str]

    def sha256_by_file(self) -> dict[str, str]:
        return self.sha256


def fill(temporary: Path) -> Notes:
    (temporary / "note.txt").write_text("a note")
    with (temporary.parent / "builds.log").open("a") as log:
        log.write("built\n")
    return Notes(key="k", sha256={"note.txt": sha256_file(temporary / "note.txt")})


class Marker(logging.Handler):
    """Makes a file when a lock is found taken."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        if "not acquired" in record.getMessage():
            self.path.touch()


def fill_while_another_waits(temporary: Path) -> Notes:
    parent = temporary.parent
    (parent / f"building-{os.getpid()}").touch()
    another_waits = (parent / "waiting").exists
    until(lambda: another_waits() or len([*parent.glob("building-*")]) == 2, "the other process comes to the lock")
    return fill(temporary)


def build_in_process(folder: Path) -> None:
    locks = logging.getLogger("filelock")
    locks.setLevel(logging.DEBUG)
    locks.addHandler(Marker(folder.parent / "waiting"))
    build_once(folder, Notes, fill_while_another_waits)


def never_finish(folder: Path) -> None:
    with new_folder(folder) as temporary:
        (temporary / "half").write_text("half")
        (folder.parent / "started").touch()
        time.sleep(PATIENCE_SECONDS)  # it is killed


def builds(parent: Path) -> int:
    return len((parent / "builds.log").read_text().splitlines())


def test_a_folder_is_built_once_and_verified_after(tmp_path):
    first = build_once(tmp_path / "k", Notes, fill)
    assert build_once(tmp_path / "k", Notes, fill) == first
    assert builds(tmp_path) == 1
    assert first.folder == tmp_path / "k"


def test_a_link_is_removed_without_what_it_leads_to(tmp_path):
    (target := tmp_path / "target").mkdir()
    (link := tmp_path / "link").symlink_to(target)
    remove(link)
    assert [*tmp_path.iterdir()] == [target]


@pytest.mark.parametrize("file", ["note.txt", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_folder_is_named_set_aside_and_rebuilt(tmp_path, caplog, file, damage):
    path = build_once(tmp_path / "k", Notes, fill).folder / file
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()
    with pytest.raises(Damaged, match=file):
        Notes.read(tmp_path / "k")
    assert build_once(tmp_path / "k", Notes, fill).sha256 == Notes.read(tmp_path / "k").sha256
    assert builds(tmp_path) == 2
    assert str(path) in caplog.text
    assert (tmp_path / "k.damaged-1").is_dir()


def test_every_bit_of_a_manifest_counts(tmp_path):
    path = build_once(tmp_path / "k", Notes, fill).folder / Notes.FILE
    whole = path.read_bytes()
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 1
        path.write_bytes(data)
        try:
            changed = Notes.read(tmp_path / "k")
        except Damaged:
            continue
        path.write_bytes(whole)
        assert changed == Notes.read(tmp_path / "k"), f"byte {position} changed what was read"


def test_two_processes_at_once_build_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=build_in_process, args=(tmp_path / "k",)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert builds(tmp_path) == 1


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fail(temporary: Path) -> Notes:
        (temporary / "half").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        build_once(tmp_path / "k", Notes, fail)
    assert [path.name for path in tmp_path.iterdir()] == [".k.lock"]


def test_a_killed_build_is_not_taken_for_a_folder(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=never_finish, args=(tmp_path / "k",))
    process.start()
    until(lambda: (tmp_path / "started").exists() or not process.is_alive(), "the build begins")
    assert process.is_alive()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "k").exists()
    assert build_once(tmp_path / "k", Notes, fill).sha256


def test_an_atomic_write_that_fails_leaves_the_old_bytes(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


HOSTILE_NAMES = [
    "", ".", "..", "../x", "../../models/textgen/champion", "/etc/passwd", "a/b", "a\\b", "C:\\x", ".hidden", "a\0b",
    "a\nb", "\x1b[31m", "\u202ea", "x" * 256, "塔" * 86,
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_manifest_that_names_more_than_a_file_in_its_folder_is_damaged(tmp_path, name):
    for folder, manifest in {
        "file": Notes(key="k", sha256={name: "0" * 64}),
        "key": Notes(key=name, sha256={}),
    }.items():
        manifest.write(tmp_path / folder)
        with pytest.raises(Damaged, match="plain file name") as damage:
            Notes.parse(tmp_path / folder)
        assert len(str(damage.value)) < 500


def test_a_manifest_of_too_many_files_is_damaged(tmp_path):
    Notes(key="k", sha256={str(number): "0" * 64 for number in range(100_000)}).write(tmp_path)
    with pytest.raises(Damaged, match="100,000 files"):
        Notes.read(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"a":' * 100_000, "[]", "3", '{"a": ' + "9" * 5_000 + "}", "\udcff", '{"manifest_sha256": []}'],
    ids=lambda content: content[:10],
)
def test_a_manifest_that_is_no_manifest_is_damaged(tmp_path, content):
    (tmp_path / Notes.FILE).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(Damaged, match=r"manifest\.json is damaged"):
        Notes.parse(tmp_path)


def test_a_folder_in_the_place_of_a_manifest_is_damage(tmp_path):
    (tmp_path / Notes.FILE).mkdir()
    with pytest.raises(Damaged, match="is no file"):
        Notes.parse(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a file that is always full")
@pytest.mark.parametrize(
    "write",
    [
        lambda file: pyarrow.parquet.write_table(pyarrow.table({"a": list(range(100_000))}), file),
        lambda file: torch.save(torch.zeros(100_000), file),
    ],
)
def test_a_full_disk_names_the_file_whichever_library_writes(write):
    full = Path("/dev/full")
    with (
        pytest.raises(OSError, match="No space left") as error,
        naming_the_file(full),
        full.open("wb", buffering=0) as file,
    ):
        write(file)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(full))


def test_an_error_that_is_not_of_the_disk_is_left_as_it_is():
    with pytest.raises(RuntimeError, match=r"^another$"), naming_the_file(Path("file")):
        raise RuntimeError("another")
