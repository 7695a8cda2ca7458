"""Which files a value of `data.files` names, how each is read, and what is left out of a folder."""

import gzip
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from textgen.errors import InputError
from textgen.text.local_files import (
    BROKEN,
    HIDDEN,
    KINDS,
    LOOP,
    REPEATED,
    SPECIAL,
    STORAGE,
    UNREADABLE,
    ending_of,
    find_files,
    read_kind,
)

EXAMPLES = 100


def write(folder: Path, *names: str) -> Path:
    """Write an empty file of each name into the folder, with the folders on the way, and return the folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(*values: str | Path) -> list[str]:
    return [file.name for file in find_files("data.files", list(map(str, values))).files]


def refusal(*values: str | Path) -> str:
    with pytest.raises(InputError) as error:
        find_files("data.files", list(map(str, values)))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.txt", ("text", None)), ("a.md", ("text", None)), ("a.jsonl", ("jsonl", None)), ("a.ndjson", ("jsonl", None)),
     ("a.csv", ("csv", None)), ("a.tsv", ("tsv", None)), ("a.parquet", ("parquet", None)),
     ("a.txt.gz", ("text", ".gz")), ("a.csv.bz2", ("csv", ".bz2")), ("a.tsv.xz", ("tsv", ".xz")),
     ("a.parquet.zst", ("parquet", ".zst")), ("A.TXT", ("text", None)), ("A.Jsonl.GZ", ("jsonl", ".gz")),
     ("a.csv.txt", ("text", None)), ("v1.2.md", ("text", None)), ("a.txt.gz.xz", None), ("a.gz", None), ("a", None),
     (".txt", None), ("a.jpg", None), ("a.txt.jpg", None), ("txt", None), ("a.txt ", None)],
)  # fmt: skip
def test_the_ending_alone_says_the_kind(name, kind):
    assert read_kind(Path(name)) == kind


@pytest.mark.parametrize(
    ("name", "ending"),
    [("A.TXT", ".txt"), ("b/x.1.Jsonl.GZ", ".jsonl.gz"), ("x.csv.txt", ".txt"), ("train", "")],
)
def test_a_report_counts_by_the_ending_that_says_the_kind(name, ending):
    assert ending_of(name) == ending


@pytest.mark.parametrize(
    "name",
    ["x[ab].txt", "a b.txt", "*.txt", "?.txt", "[.txt", "**.md", "A.TXT", "塔.txt", "~.txt", "{a,b}.txt", "-n.txt"],
)
def test_a_value_that_names_a_file_is_that_file(tmp_path, name):
    write(tmp_path, name, "xa.txt", "b.txt", "a.txt", "n.txt")
    assert names(tmp_path / name) == [name]


@pytest.mark.parametrize("name", ["x[ab]", "a b", "*", ".corpus", "a.jpg", "..corpus"])
def test_a_value_that_names_a_folder_is_all_of_it(tmp_path, name):
    write(tmp_path, f"{name}/1.txt", f"{name}/in/2.md", "xa/3.txt", "b/4.txt")
    assert names(tmp_path / name) == ["1.txt", "in/2.md"]


def test_another_value_is_a_glob(tmp_path):
    write(tmp_path, "x[ab].txt", "xa.txt", "xc.txt", "in/y.txt", "in/deep/z.txt", ".hidden/h.txt", "in/.h.txt")
    assert names(tmp_path / "x*.txt") == ["x[ab].txt", "xa.txt", "xc.txt"]
    assert names(tmp_path / "x[ab]*.txt") == ["xa.txt"]
    assert names(tmp_path / "x[[]ab].txt") == ["x[ab].txt"]
    assert names(tmp_path / "**/*.txt") == ["in/deep/z.txt", "in/y.txt", "x[ab].txt", "xa.txt", "xc.txt"]
    assert names(tmp_path / ".hidden/*") == ["h.txt"]
    assert names(f"{tmp_path}/in/*") == ["y.txt"], "a folder that a glob matches is not gone into"


def test_a_glob_from_the_working_folder_has_the_same_names(tmp_path, monkeypatch):
    write(tmp_path, "in/a.txt", "b.txt")
    monkeypatch.chdir(tmp_path / "in")
    assert names("*.txt") == names("./*.txt") == names("a.txt") == names(".") == ["a.txt"]
    assert names("../*.txt") == ["b.txt"]


def test_a_tilde_is_the_home_folder_unless_something_has_that_name(tmp_path, monkeypatch):
    write(tmp_path, "home/notes/a.txt", "here/b.txt")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    assert names("~") == ["notes/a.txt"]
    assert names("~/notes", "~/notes/*.txt") == ["a.txt"]
    assert "no file matches" in refusal("~no-such-user/notes")
    write(tmp_path, "here/~/c.txt")
    assert names("~") == ["c.txt"]


def test_a_list_is_each_file_once_in_the_order_of_the_paths(tmp_path):
    write(tmp_path, "b.txt", "a/c.txt", "a/d.txt")
    (tmp_path / "link.txt").symlink_to("b.txt")
    found = find_files("data.files", [str(tmp_path / name) for name in ("b.txt", "a", "*.txt", "a/d*", "link.txt")])
    assert [str(file.path.relative_to(tmp_path)) for file in found.files] == ["a/c.txt", "a/d.txt", "b.txt"]
    assert found.left_out == {REPEATED: 1}, "link.txt, which two values name"


@pytest.mark.parametrize("link", ["a.md", "z.md", "in/z.md"])
def test_a_link_and_the_file_it_leads_to_are_read_once_and_the_other_is_counted(tmp_path, link):
    write(tmp_path, "in/other.txt", "m.md")
    (tmp_path / link).symlink_to(tmp_path / "m.md")
    found = find_files("data.files", [str(tmp_path)])
    assert len(found.files) == 2 and found.left_out == {REPEATED: 1}


def test_what_a_folder_has_beside_text_is_left_out_and_counted(tmp_path):
    write(tmp_path, "a.txt", ".b.txt", ".git/c.txt", "p.JPG", "in/q.jpg", "r.pdf", "LICENSE", "in/.d", "s.tar.gz")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "itself.txt").symlink_to("itself.txt")
    os.mkfifo(tmp_path / "fifo.txt")
    found = find_files("data.files", [str(tmp_path)])
    assert [file.name for file in found.files] == ["a.txt"]
    assert found.left_out == {HIDDEN: 3, ".jpg": 2, ".pdf": 1, "without an ending": 1, ".gz": 1, BROKEN: 2, SPECIAL: 1}


def test_what_may_not_be_read_in_a_folder_is_left_out_and_counted(tmp_path, monkeypatch):
    """`data.files=/` ended at a link in /proc that nobody may follow. Root, who may run the tests, may read all."""
    write(tmp_path, "mine/a.txt", "mine/locked/b.txt", "mine/secret.txt", "mine/link.txt")
    mine = tmp_path / "mine"
    scandir, access, is_dir = os.scandir, os.access, Path.is_dir

    def refuse(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def refused(path: Path, *arguments: object) -> Any:
            if Path(path).name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *arguments)

        return refused

    monkeypatch.setattr(os, "scandir", refuse("locked", scandir))
    monkeypatch.setattr(Path, "is_dir", refuse("link.txt", is_dir))
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "secret.txt" and access(path, mode))
    found = find_files("data.files", [str(mine)])
    assert [file.name for file in found.files] == ["a.txt"]
    assert found.left_out == {UNREADABLE: 3}
    assert refusal(mine / "locked").endswith(f"Permission denied: {mine / 'locked'}"), "which the value names itself"


def test_links_are_followed_and_loops_of_them_end(tmp_path):
    write(tmp_path, "mine/a/x.txt", "mine/z/y.txt", "other/o.txt")
    (tmp_path / "mine/a/up").symlink_to("..")
    (tmp_path / "mine/other").symlink_to(tmp_path / "other")
    (tmp_path / "other/back").symlink_to(tmp_path / "mine")
    found = find_files("data.files", [str(tmp_path / "mine")])
    assert [file.name for file in found.files] == ["a/x.txt", "other/o.txt", "z/y.txt"]
    assert found.left_out == {LOOP: 2}


def test_a_glob_of_all_folders_ends_where_links_make_loops(tmp_path):
    """Two links to the folder itself have 2^40 paths that the system opens."""
    write(tmp_path, "mine/x.txt", "mine/a/y.txt", "mine/.hidden/h.txt")
    for name in ("one", "two"):
        (tmp_path / "mine" / name).symlink_to(".")
    assert names(tmp_path / "mine" / "**" / "*.txt") == ["a/y.txt", "x.txt"]
    assert names(tmp_path / "**" / "mine" / "**" / "*.txt") == ["mine/a/y.txt", "mine/x.txt"]
    assert names(tmp_path / "mine" / "**" / ".hidden" / "*") == [".hidden/h.txt"]


def test_a_file_of_two_names_has_the_same_one_whatever_order_the_disk_lists_them_in(tmp_path, monkeypatch):
    write(tmp_path, "b/x.txt", "m/y.txt")
    for name in ("a", "c", "m/z"):
        (tmp_path / name).symlink_to(tmp_path / "b")
    found = []
    for seed in range(6):
        scandir = _shuffled(os.scandir, seed)
        monkeypatch.setattr(os, "scandir", scandir)
        found.append(names(tmp_path))
        monkeypatch.undo()
    assert found == [["a/x.txt", "m/y.txt"]] * 6


def _shuffled(scandir: Callable, seed: int) -> Callable:
    class Shuffled(list):
        def __enter__(self) -> Sequence[os.DirEntry]:
            return self

        def __exit__(self, *error: object) -> None:
            pass

    def shuffled(path: Path) -> Shuffled:
        with scandir(path) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
        random.Random(seed).shuffle(entries)
        return Shuffled(entries)

    return shuffled


@pytest.mark.parametrize("value", ["a.jpg", "*", "a.*", "in/b.pdf", "in/*", "**/*.pdf", "gz.gz"])
def test_a_name_or_a_glob_that_asks_for_another_kind_is_refused(tmp_path, value):
    write(tmp_path, "a.jpg", "a.txt", "in/b.pdf", "gz.gz")
    said = refusal(tmp_path / value)
    assert all(ending in said for ending in KINDS)
    assert repr(str(tmp_path / value)) in said


@pytest.mark.parametrize("value", ["fifo.txt", "*.txt", "gone.md", "itself.md", "*.md"])
def test_a_name_or_a_glob_of_no_regular_file_is_refused_and_not_opened(tmp_path, value):
    write(tmp_path, "a.txt", "a.md")
    os.mkfifo(tmp_path / "fifo.txt")
    (tmp_path / "gone.md").symlink_to("nowhere")
    (tmp_path / "itself.md").symlink_to("itself.md")
    assert "is a broken link or no regular file" in refusal(tmp_path / value)


@pytest.mark.parametrize("value", ["", "nowhere", "no*", "a.txt/b.txt", "[", "b[!", "**/["])
def test_a_value_that_matches_nothing_is_refused(tmp_path, monkeypatch, value):
    write(tmp_path, "a.txt")
    monkeypatch.chdir(tmp_path)
    assert f"data.files={value!r}: no file matches" in refusal("a.txt", value)


def test_a_folder_without_text_is_refused_with_what_it_has(tmp_path):
    write(tmp_path, "a.jpg", "b.jpg", ".c.txt")
    assert refusal(tmp_path).endswith("no file matches; left out: 2 .jpg, 1 hidden")


def test_a_name_that_is_too_long_is_refused(tmp_path):
    assert "File name too long" in refusal(tmp_path / ("x" * 300))


def test_a_name_of_bytes_that_are_no_text_is_shown_with_escapes(tmp_path):
    (tmp_path / os.fsdecode(b"\xff\nb.txt")).touch()
    found = find_files("data.files", [str(tmp_path)]).files
    assert [file.name for file in found] == ["\\udcff\\nb.txt"]
    assert str(found[0]) == f"{tmp_path}/\\udcff\\nb.txt"
    assert found[0].path.is_file()


def test_what_a_file_holds_does_not_decide_its_kind(tmp_path):
    (tmp_path / "a.txt").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "b.csv").write_bytes(b"PAR1")
    found = find_files("data.files", [str(tmp_path)]).files
    assert [(file.kind, file.compression) for file in found] == [("text", None), ("csv", None)]


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None)
@given(st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_any_name_is_a_name(tmp_path_factory, name):
    assume(name.strip("."))  # a name of dots and an ending is a hidden file without one, as .txt
    folder = tmp_path_factory.mktemp("names")
    path = folder / f"{name}.txt"
    path.touch()
    found = find_files("data.files", [str(path)]).files
    assert [file.path for file in found] == [path]
    assert "\n" not in found[0].name


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None)
@given(st.text(st.characters(exclude_characters="\0"), max_size=40))
def test_any_value_is_files_or_one_line(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("values")
    write(folder, "a.txt")
    try:
        assert find_files("data.files", [f"{folder}/in/{value}"]).files
    except InputError as error:
        assert str(error).startswith("data.files=")


def test_what_runs_have_made_is_no_text_of_ones_own(tmp_path):
    for name in ("a.txt", "data/raw/b.txt", "data/raw/c.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    storage = tmp_path / "data"
    found = find_files("data.files", [str(tmp_path)], storage)
    assert ([file.name for file in found.files], found.left_out) == (["a.txt"], {STORAGE: 1})
    assert [file.name for file in find_files("data.files", [f"{tmp_path}/**/*.txt"], storage).files] == ["a.txt"]
    assert [file.name for file in find_files("data.files", [f"{storage}/raw/*.txt"], storage).files] == ["b.txt"]
