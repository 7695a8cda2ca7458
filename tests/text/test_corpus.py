"""Raw text: what is frozen, that it stays as it was, and what is refused."""

import gc
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from textgen.errors import InputError
from textgen.sections import SPLITS, DataConfig
from textgen.storage import Storage
from textgen.text import corpus, documents, freezing, python_docs, readers, sources
from textgen.text.corpus import RawManifest, fetch, raw_folder, read_excerpts, read_parts, read_rows
from textgen.text.documents import Part

WIKITEXT = Path(__file__).parents[3] / "shared" / "wikitext"


@pytest.fixture
def text_files(tmp_path) -> DataConfig:
    """Return a corpus of three text files."""
    for split in SPLITS:
        (tmp_path / f"{split}.txt").write_text(f" = {split} = \n\nsome words of {split}\nzuletzt: Übung\n")
    return DataConfig(files={split: str(tmp_path / f"{split}*.txt") for split in SPLITS})


@pytest.fixture(scope="module")
def docs() -> Iterator[dict[str, list[str]]]:
    """Yield the embedded corpus; a module of the library that was parsed once is not parsed again."""
    paragraphs = python_docs._paragraphs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(python_docs, "_paragraphs", cache(lambda path: list(paragraphs(path))))
        yield python_docs.python_docs()


def test_text_files_are_frozen_a_document_a_file_with_nothing_lost(text_files, tmp_path):
    manifest = fetch(text_files, Storage.at(tmp_path / "data"))
    text = " = test = \n\nsome words of test\nzuletzt: Übung\n"
    assert list(read_rows(manifest, "test")) == [text]
    split = manifest.splits["test"]
    assert (split.rows, split.documents, split.words, split.text_bytes) == (1, 1, 9, len(text.encode()))
    assert manifest.folder.is_relative_to(tmp_path / "data" / "raw" / "files")


def test_parquet_files_and_a_folder_in_hub_layout_are_read_alike(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for split in SPLITS:
        pyarrow.parquet.write_table(pyarrow.table({"text": [f"{split} one\n", ""]}), folder / f"{split}.parquet")
    of_folder = fetch(DataConfig(path=str(folder)), Storage.at(tmp_path / "data"))
    of_files = fetch(DataConfig(files={s: f"{folder}/{s}.parquet" for s in SPLITS}), Storage.at(tmp_path / "data"))
    of_folder_rows, of_files_rows = (list(read_rows(raw, "validation")) for raw in (of_folder, of_files))
    assert of_folder_rows == of_files_rows == ["validation one\n", ""]
    assert list(read_parts(of_folder, "validation")) == list(read_parts(of_files, "validation"))
    assert of_folder.folder.parent.name == "mine"


def test_a_second_fetch_only_reads(text_files, tmp_path):
    first = fetch(text_files, Storage.at(tmp_path / "data"))
    written = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert fetch(text_files, Storage.at(tmp_path / "data")) == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == written
    assert all(path.stat().st_mode & 0o222 == 0 for path in first.folder.glob("*.parquet"))


def test_a_changed_source_gets_a_folder_of_its_own_and_the_old_one_stays(text_files, tmp_path):
    first = fetch(text_files, Storage.at(tmp_path / "data"))
    path = tmp_path / "train.txt"
    path.write_text(path.read_text().replace("some", "more"))
    os.utime(path, ns=(1, 1))
    second = fetch(text_files, Storage.at(tmp_path / "data"))
    assert first.key != second.key
    assert "more words" in "".join(read_rows(second, "train"))
    assert "some words" in "".join(read_rows(first, "train"))


@pytest.mark.parametrize("split", SPLITS)
def test_a_flipped_byte_is_named_set_aside_and_rebuilt(text_files, tmp_path, caplog, split):
    manifest = fetch(text_files, Storage.at(tmp_path / "data"))
    path = manifest.folder / f"{split}.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    assert fetch(text_files, Storage.at(tmp_path / "data")) == manifest
    assert str(path) in caplog.text
    aside = manifest.folder.with_name(f"{manifest.key}.damaged-1")
    assert (aside / path.name).read_bytes() == bytes(data)


def test_the_key_asks_no_network_and_needs_no_fetch(text_files, tmp_path):
    assert raw_folder(text_files, Storage.at(tmp_path)) == fetch(text_files, Storage.at(tmp_path)).folder
    assert raw_folder(DataConfig(), Storage.at(tmp_path)) is None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b"abc\xff\n"), ["train.txt", "not UTF-8", "byte 3"]),
        (lambda path: path.write_bytes("ü".encode()[:1]), ["train.txt", "not UTF-8"]),
        (lambda path: path.write_bytes(b""), ["data.files.train", "empty"]),
        (lambda path: path.unlink(), ["data.files.train", "no file matches"]),
    ],
)
def test_a_bad_text_file_is_refused_before_anything_is_written(text_files, tmp_path, damage, words):
    damage(tmp_path / "train.txt")
    with pytest.raises(InputError) as error:
        fetch(text_files, Storage.at(tmp_path / "data"))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "data").exists()


def test_a_character_across_two_reads_is_no_mistake(text_files, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "READ_BYTES", 1)
    fetch(text_files, Storage.at(tmp_path / "data"))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        fetch(DataConfig(path=str(tmp_path / "nowhere")), Storage.at(tmp_path / "data"))


def test_another_column_of_a_folder_in_hub_layout_is_read(tmp_path):
    """The key was taken, and the column `text` was read."""
    (tmp_path / "mine").mkdir()
    for split in SPLITS:
        rows = pyarrow.table({"text": ["a title"], "body": [f"{split} one\n"]})
        pyarrow.parquet.write_table(rows, tmp_path / "mine" / f"{split}.parquet")
    storage = Storage.at(tmp_path / "data")
    of_body = fetch(DataConfig(path=str(tmp_path / "mine"), text_column="body"), storage)
    of_text = fetch(DataConfig(path=str(tmp_path / "mine")), storage)
    assert list(read_rows(of_body, "test")) == ["test one\n"] and list(read_rows(of_text, "test")) == ["a title"]
    assert of_body.key != of_text.key


@pytest.mark.parametrize(
    ("columns", "splits", "word"),
    [("text", ("train", "test"), "no validation split"), ("body", SPLITS, "no column `text`")],
)
def test_a_dataset_without_a_split_or_the_column_is_refused(tmp_path, columns, splits, word):
    folder = tmp_path / "mine"
    folder.mkdir()
    for split in splits:
        pyarrow.parquet.write_table(pyarrow.table({columns: ["a row"]}), folder / f"{split}.parquet")
    with pytest.raises(InputError, match=word):
        fetch(DataConfig(path=str(folder)), Storage.at(tmp_path / "data"))
    assert not list((tmp_path / "data").rglob("*.parquet"))


def test_a_split_of_empty_rows_is_refused(tmp_path):
    for split in SPLITS:
        pyarrow.parquet.write_table(
            pyarrow.table({"text": ["" if split == "test" else "a"]}), tmp_path / f"{split}.parquet"
        )
    with pytest.raises(InputError, match=r"data\.files\.test: the split is empty"):
        fetch(
            DataConfig(files={split: str(tmp_path / f"{split}.parquet") for split in SPLITS}),
            Storage.at(tmp_path / "data"),
        )


def test_the_embedded_corpus_is_a_document_a_module_in_three_splits(docs):
    sizes = {split: sum(map(len, rows)) for split, rows in docs.items()}
    assert sum(map(len, docs.values())) > 200
    assert sum(sizes.values()) > 1_000_000
    assert 0.03 < sizes["validation"] / sizes["train"] < 0.08
    assert 0.03 < sizes["test"] / sizes["train"] < 0.08
    assert max(len(row) for row in docs["test"]) < sizes["test"] / 3, "one module must not be the test split"


def test_no_paragraph_of_a_held_out_split_occurs_in_train(docs):
    train = " ".join("\n".join(docs["train"]).split())
    held_out = [p for split in ("validation", "test") for row in docs[split] for p in row.split("\n\n") if p.strip()]
    assert len(held_out) > 1000
    assert not [paragraph for paragraph in held_out if " ".join(paragraph.split()) in train]


def test_the_embedded_corpus_is_the_same_every_time(docs, monkeypatch):
    modules = python_docs.standard_library()
    monkeypatch.setattr(python_docs, "standard_library", lambda: dict(reversed(modules.items())))
    assert python_docs.python_docs() == docs, "whichever way round the file system names the modules"


@pytest.mark.skipif(not WIKITEXT.is_dir(), reason="needs ../shared/wikitext")
def test_wikitext_2_has_the_published_counts(tmp_path):
    manifest = fetch(DataConfig(path=str(WIKITEXT), dataset_config="wikitext-2-v1"), Storage.at(tmp_path))
    counts = {name: (split.rows, split.words) for name, split in manifest.splits.items()}
    assert counts == {"train": (36_718, 2_051_910), "validation": (3_760, 213_886), "test": (4_358, 241_211)}


@pytest.mark.skipif(not WIKITEXT.is_dir(), reason="needs ../shared/wikitext")
def test_an_unknown_configuration_is_named_with_those_there_are(tmp_path):
    with pytest.raises(InputError, match="wikitext-2-v1"):
        fetch(DataConfig(path=str(WIKITEXT), dataset_config="wikitext-3"), Storage.at(tmp_path))


def test_a_folder_in_hub_layout_keeps_line_ends_as_the_files_do(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for split in SPLITS:
        (folder / f"{split}.txt").write_bytes(f"{split} one\r\n\r\n \n= two =\n".encode())
    of_path = fetch(DataConfig(path=str(folder), document="line"), Storage.at(tmp_path / "data"))
    files = {split: f"{folder}/{split}.txt" for split in SPLITS}
    of_files = fetch(DataConfig(files=files, document="line"), Storage.at(tmp_path / "data"))
    for split in SPLITS:
        assert list(read_rows(of_path, split)) == list(read_rows(of_files, split))
        assert "".join(read_rows(of_path, split)) == f"{split} one\r\n\r\n \n= two =\n"


@pytest.mark.parametrize("source", ["path", "python-docs"])
def test_no_progress_bar_of_datasets_is_shown(tmp_path, capfd, monkeypatch, source):
    monkeypatch.setattr(sources, "python_docs", lambda: {split: ["one"] for split in SPLITS})
    (tmp_path / "mine").mkdir()
    for split in SPLITS:
        (tmp_path / "mine" / f"{split}.jsonl").write_text('{"text": "one"}\n')
    datasets.enable_progress_bars()
    data = DataConfig(path=str(tmp_path / "mine")) if source == "path" else DataConfig(dataset_name=source)
    fetch(data, Storage.at(tmp_path / "data"))
    assert capfd.readouterr().err == ""


def test_a_folder_in_the_home_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.txt").write_text("one")
    monkeypatch.setenv("HOME", str(tmp_path))
    of_home, of_path = (DataConfig(path=path) for path in ("~/mine", str(tmp_path / "mine")))
    assert raw_folder(of_home, Storage.at(tmp_path / "data")) == raw_folder(of_path, Storage.at(tmp_path / "data"))


@pytest.mark.parametrize("name", [".corpus", "../.corpus", "in/../.corpus", ".corpus/in", "link"])
@pytest.mark.parametrize("key", ["path", "files"])
def test_an_edited_file_is_noticed_wherever_the_folder_is(tmp_path, monkeypatch, name, key):
    place = tmp_path / "in"
    place.mkdir()
    monkeypatch.chdir(place if name.startswith("..") else tmp_path)
    folder = tmp_path / (".corpus/in" if name.endswith("/in") else ".corpus")
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    for split in SPLITS:
        (folder / f"{split}.txt").write_text(f"{split} one\n")
    found = []
    for text in ("train one\n", "train two\n"):
        (folder / "train.txt").write_text(text)
        os.utime(folder / "train.txt", ns=(len(found), len(found)))
        named = {split: f"{name}/{split}.txt" for split in SPLITS} if key == "files" else name
        found.append(fetch(DataConfig(**{key: named}), Storage.at(tmp_path / "data")))
        assert list(read_rows(found[-1], "train")) == [text]
    assert found[0].key != found[1].key


def test_every_file_that_is_read_of_a_folder_is_in_the_key_and_another_is_refused(tmp_path):
    folder = tmp_path / "mine"
    (folder / ".hidden").mkdir(parents=True)
    for split in SPLITS:
        (folder / f".hidden/{split}.txt").write_text(f"{split}\n")
    entries = "".join(f"      - {{split: {split}, path: .hidden/{split}.txt}}\n" for split in SPLITS)
    (folder / "README.md").write_text(f"---\nconfigs:\n  - config_name: default\n    data_files:\n{entries}---\n")
    assert "is read, but is hidden or outside of the folder" in refusal(tmp_path, path=str(folder))


def of_texts(folder: Path, texts: list[str], **data: Any) -> RawManifest:
    """Freeze a corpus that has the texts in each split, in tables that are written 300 characters at a time."""
    for split in SPLITS:
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(freezing, "WRITE_CHARACTERS", 300)
        files = {split: str(folder / f"{split}.jsonl") for split in SPLITS}
        return fetch(DataConfig(files=files, **data), Storage.at(folder / "data"))


def test_excerpts_of_many_rows_are_of_the_first_the_last_and_rows_between(tmp_path):
    raw = of_texts(tmp_path, [f"row {number}" for number in range(100)])
    found = [part.text for part in read_excerpts(raw, "test", 12, 10)]
    assert found == [f"row {number}" for number in range(0, 100, 9)]
    assert all(part.begins for part in read_excerpts(raw, "test", 12, 10))


def test_excerpts_of_long_rows_are_of_their_beginning_middle_and_end(tmp_path):
    raw = of_texts(tmp_path, ["aaaabbbbcccc"] * 50)
    found = list(read_excerpts(raw, "test", 6, 4))
    assert found == [Part("aaaa", True), Part("bbbb", False), Part("cccc", False)] * 2


@pytest.mark.parametrize("most", [3, 7, 11])
def test_excerpts_of_few_rows_are_at_even_distances_to_the_end(tmp_path, most):
    raw = of_texts(tmp_path, ["a" + "b" * 78 + "c", "short", " "])
    found = list(read_excerpts(raw, "test", most, 10))
    assert [part.text for part in found[-2:]] == ["short", " "]
    assert len(found) == max(1, most // 3) + 2 and all(len(part.text) <= 10 for part in found)
    assert found[0] == Part("a" + "b" * 9, True)
    assert most == 3 or found[-3] == Part("b" * 9 + "c", False)


def test_an_excerpt_of_a_part_of_a_document_begins_within_it(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "PART_CHARACTERS", 50)
    monkeypatch.setattr(readers, "PART_CHARACTERS", 50)
    for split in SPLITS:
        (tmp_path / f"{split}.txt").write_text("x" * 100)
    raw = fetch(DataConfig(files={split: f"{tmp_path}/{split}.txt" for split in SPLITS}), Storage.at(tmp_path / "data"))
    assert [part.begins for part in read_excerpts(raw, "test", 2, 50)] == [True, False]


def test_a_key_says_how_plain_text_beside_other_kinds_is_read(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for split in SPLITS:
        (folder / f"{split}.txt").write_text("a\nb\n")
    (folder / "notes.csv").write_text("text\na\n")
    counts = []
    for document in ("file", "line"):
        raw = fetch(DataConfig(path=str(folder), document=document), Storage.at(tmp_path / "data"))
        counts.append(raw.splits["train"].documents)
    assert counts == [1, 2]


def refusal(root: Path, **data: Any) -> str:
    with pytest.raises(InputError) as error:
        fetch(DataConfig(**data), Storage.at(root / "data"))
    assert "\n" not in str(error.value)
    assert not list((root / "data").rglob("*.parquet"))
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("README.md", "---\nconfigs: [\n---\n", "ParserError"),
        ("README.md", "---\nconfigs: 3\n---\n", "data"),
        ("mine.py", "a = 1\n", "scripts are no longer supported"),
        ("dataset_infos.json", "{", "JSONDecodeError"),
        ("test.txt", "", "data.path"),
        ("validation.txt", None, "data.path"),
        ("validation.txt", b"\xff", "validation.txt: the text is not UTF-8"),
    ],
)
def test_a_broken_folder_in_hub_layout_is_one_line(tmp_path, name, content, word):
    folder = tmp_path / "mine"
    folder.mkdir()
    for split in SPLITS:
        (folder / f"{split}.txt").write_text(f"{split}\n")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert word in refusal(tmp_path, path=str(folder))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_broken_tables_of_a_folder_in_hub_layout_are_one_line(tmp_path, kind):
    broken = [b"text\na\n" + b'"b', b'{"text": [', b"PAR1", b"\xff\xfe", b'{"text": 1}\n', b"\x00" * 99]
    for number, data in enumerate(broken):
        folder = tmp_path / f"mine-{number}"
        folder.mkdir()
        for split in SPLITS:
            (folder / f"{split}.{kind}").write_bytes(data)
        assert refusal(tmp_path, path=str(folder)).startswith("data"), data
    gc.collect()  # `datasets` leaves a broken file open, of which the next test would be told


@pytest.mark.parametrize("name", ["x" * 300, "", "a.txt", "fifo"])
def test_a_path_that_is_no_folder_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").touch()
    os.mkfifo(tmp_path / "fifo")
    assert refusal(tmp_path, path=name) == f"data.path={name!r}: there is no such folder"


@pytest.mark.parametrize("key", ["path", "files"])
def test_a_file_that_may_not_be_read_is_one_line(tmp_path, monkeypatch, key):
    folder = tmp_path / "mine"
    folder.mkdir()
    for split in SPLITS:
        (folder / f"{split}.txt").write_text("a\n")

    def refuse(path: Path) -> str:  # the tests may be run by root, who may read any file
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(sources, "sha256_file", refuse)
    assert refusal(tmp_path, **{key: str(folder)}).endswith(".txt: Permission denied")


@pytest.mark.parametrize("key", ["path", "files"])
def test_what_is_read_is_what_was_hashed(tmp_path, monkeypatch, key):
    folder = tmp_path / "mine"
    folder.mkdir()
    for split in SPLITS:
        (folder / f"{split}.txt").write_text(f"{split}\n")
    freeze = corpus.freeze_files

    def change_and_freeze(*arguments: Any) -> Any:
        (folder / "test.txt").write_text("other\n")
        return freeze(*arguments)

    monkeypatch.setattr(corpus, "freeze_files", change_and_freeze)
    named = {split: f"{folder}/{split}.txt" for split in SPLITS} if key == "files" else str(folder)
    assert "test.txt: the file was changed while it was read" in refusal(tmp_path, **{key: named})
