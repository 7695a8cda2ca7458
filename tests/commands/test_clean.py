"""`textgen clean`: it shows what can go, asks a person, and without one removes nothing unless it is told to."""

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.retention.test_disk_space import STATE, STATES, grow_old
from tests.test_boundaries import loaded_by
from tests.test_old_data import OLD, RAW, TOKENS, TRAINING
from textgen.__main__ import main
from textgen.files import lock_file
from textgen.storage import Storage


@pytest.fixture
def root(tmp_path) -> Path:
    """Return a storage folder with a text, tokens, a training and its version, that nobody used for 100 days."""
    root = Path(shutil.copytree(OLD / "data", tmp_path / "data"))
    grow_old(root, days=100)
    return root


@pytest.fixture
def clean(root, capsys) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the command in that folder, and returns its code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["clean", f"storage.root={root}", *arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def secret(tmp_path) -> Path:
    """Return a file with a document of the text's train split."""
    path = tmp_path / "secret.txt"
    path.write_text(next(line for line in (OLD / "text" / "train.txt").read_text().splitlines() if line.strip()))
    return path


def test_without_a_terminal_it_only_shows(clean, root):
    code, out, err = clean()
    assert code == 0
    assert f"states of a finished training  {STATES}" in out and out.count("126 kB") == 2
    assert err == "nothing was removed; --yes removes it\n"
    assert (root / STATE).exists()


def test_yes_removes_and_says_how_much(clean, root):
    code, out, _ = clean("--yes")
    assert code == 0
    assert out.endswith("removed: 126 kB\n")
    assert not (root / STATE).exists()
    assert clean("--yes")[:2] == (0, "nothing can go\n")


def test_json_is_one_document_and_removes_nothing_without_yes(clean, root):
    found = json.loads(clean("--json")[1])
    assert found["items"] == [{"kind": "states", "name": STATES, "bytes": found["bytes"], "removed": False}]
    assert (root / STATE).exists()
    assert json.loads(clean("--json", "--yes")[1])["items"][0]["removed"]
    assert not (root / STATE).exists()


def test_what_was_used_of_late_is_counted_and_kept(clean, root):
    shutil.rmtree(root / "models")
    grow_old(root, days=20)
    out = clean()[1]
    assert "more: needed by nothing, but used in the last 30 days (--days=0 has them too)" in out
    assert TOKENS not in out
    out = clean("--days", "10")[1]
    assert all(key in out for key in (TRAINING, TOKENS, RAW)) and "more: " not in out


def test_many_things_of_a_kind_are_one_line(clean, root):
    for number in range(15):
        (root / f"note-{number}.damaged-1").write_bytes(b"x" * 1000 * (1 + number))
    damaged = [line for line in clean()[1].splitlines() if "damaged, set aside" in line]
    assert len(damaged) == 11
    assert damaged[0].split() == ["15", "kB", "damaged,", "set", "aside", "note-14.damaged-1"]
    assert damaged[-1].split() == ["15", "kB", "damaged,", "set", "aside", "and", "5", "more"]


def at_a_terminal(root: Path, answer: str, *arguments: str) -> tuple[int, str]:
    """Run the command at a terminal, answer its question, and return its exit code and what was on the terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "textgen", "clean", f"storage.root={root}", *arguments]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while not shown.endswith(b"[y/N] "):
            shown += os.read(ours, 1)
        os.write(ours, answer.encode())
        while True:
            try:
                shown += os.read(ours, 1000)
            except OSError:  # it has ended
                break
    os.close(ours)
    return process.returncode, shown.decode()


@pytest.mark.parametrize(("answer", "removes"), [("y\n", True), ("\n", False), ("\x04", False)])
def test_a_person_is_asked(root, answer, removes):
    code, shown = at_a_terminal(root, answer)
    assert code == 0
    assert "Remove this, 126 kB? [y/N]" in shown and STATES in shown
    assert (root / STATE).exists() != removes
    assert ("nothing was removed" in shown) != removes


def test_a_document_goes_with_all_that_was_made_of_it_when_a_person_agrees(root, secret):
    _, shown = at_a_terminal(root, "n\n", "data.document=line", "--document", str(secret))
    assert f"train of raw/files/{RAW}: document 1 of train" in shown
    assert "old@champion is v1, which goes, and no champion before it stays: old has no champion" in shown
    assert shown.index("old@champion") < shown.index("Remove all of this for good")
    assert (root / "models" / "old" / "v1").exists()
    at_a_terminal(root, "y\n", "data.document=line", "--document", str(secret))
    left = {
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and not path.name.endswith(".lock")
    }
    assert left == {"models/old/champion", "models/old/history.json", "models/old/v1.withdrawn"}


def test_a_document_as_json(clean, root, secret):
    code, out, _ = clean("--document", str(secret), "--json")
    found = json.loads(out)
    assert code == 0
    assert {item["name"] for item in found["items"]} == {
        "models/old/v1", f"checkpoints/{TRAINING}", f"processed/{TOKENS}", f"raw/files/{RAW}",
    }  # fmt: skip
    assert found["champions"] == [{"name": "old", "champion": "v1", "successor": None, "others": []}]
    assert not any(item["removed"] for item in found["items"])
    assert (root / "models" / "old" / "v1").exists()
    assert all(item["removed"] for item in json.loads(clean("--document", str(secret), "--json", "--yes")[1])["items"])


def test_a_document_of_several_lines_is_found_in_a_text_of_older_code(clean, root):
    found = json.loads(clean("--document", str(OLD / "text" / "train.txt"), "--json")[1])
    assert len(found["places"]) > 50 and f"raw/files/{RAW}" in {item["name"] for item in found["items"]}


def test_a_document_that_nobody_holds(clean, tmp_path):
    (tmp_path / "other.txt").write_text("in no text at all")
    assert clean("--document", str(tmp_path / "other.txt"), "--yes")[:2] == (0, "no text holds it\n")


def test_nothing_goes_while_a_version_does_not_say_of_which_text_it_is(clean, root, secret):
    (root / "models" / "old" / "v1" / "lineage.json").write_text("{}")
    shutil.rmtree(root / "checkpoints" / TRAINING)  # which has the same weights
    code, out, err = clean("--document", str(secret), "--yes")
    assert code == 1
    assert "note: nothing can go until this is settled: " in out and "v1/lineage.json is damaged" in out
    assert "nothing was removed: it is not known whether all that was made of it was found" in err
    assert (root / "processed" / TOKENS).exists() and (root / "raw" / "files" / RAW).exists()
    code, out, _ = clean("--document", str(secret), "--json", "--yes")
    found = json.loads(out)
    assert (code, len(found["unclear"]), {item["removed"] for item in found["items"]}) == (1, 1, {False})
    shutil.rmtree(root / "models" / "old" / "v1")
    assert clean("--document", str(secret), "--yes")[0] == 0
    assert not (root / "raw" / "files" / RAW).exists()


def test_a_training_on_the_text_has_to_end_first(clean, root, secret):
    folder = Storage.at(root).training(TRAINING)
    with FileLock(lock_file(folder)):
        code, _, err = clean("--document", str(secret), "--yes")
    assert code == 1
    assert f"checkpoints/{TRAINING}: a run works there that may be on this text; end it" in err
    assert folder.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--document", "nowhere.txt"], "--document='nowhere.txt': no file matches"),
        (["--days", "-1"], "--days=-1"),
        (["--days", "nan"], "--days=nan"),
        (["--document", "a.txt", "--days", "1"], "does not go with --document"),
        (["data.sequence=1"], "data.sequence"),
    ],
)
def test_a_mistake_is_one_line(clean, arguments, said):
    code, out, err = clean(*arguments)
    assert (code, out) == (2, "")
    assert said in err and err.count("\n") == 1


def test_a_place_without_anything_has_nothing_to_go(clean, root):
    shutil.rmtree(root)
    assert clean()[:2] == (0, "nothing can go\n")
    assert not root.exists()


def test_no_torch_is_loaded():
    assert not loaded_by("textgen.retention.withdrawal, textgen.commands.clean") & {"torch", "transformers"}
