"""Raw text: what is frozen, that it stays as it was, and what is refused."""

import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from textgen.config import SPLITS, DataConfig
from textgen.errors import InputError
from textgen.storage import Storage
from textgen.text import readers, sources
from textgen.text.corpus import fetch, raw_folder, read_parts, read_rows
from textgen.text.python_docs import python_docs

WIKITEXT = Path(__file__).parents[3] / "shared" / "wikitext"


@pytest.fixture
def text_files(tmp_path) -> DataConfig:
    """Return a corpus of three text files."""
    for split in SPLITS:
        (tmp_path / f"{split}.txt").write_text(f" = {split} = \n\nsome words of {split}\nzuletzt: Übung\n")
    return DataConfig(files={split: str(tmp_path / f"{split}*.txt") for split in SPLITS})


@pytest.fixture(scope="module")
def docs() -> dict[str, list[str]]:
    return python_docs()


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
    modules = sources.standard_library()
    monkeypatch.setattr(sources, "standard_library", lambda: dict(reversed(modules.items())))
    assert python_docs() == docs, "whichever way round the file system names the modules"


@pytest.mark.skipif(not WIKITEXT.is_dir(), reason="needs ../shared/wikitext")
def test_wikitext_2_has_the_published_counts(tmp_path):
    manifest = fetch(DataConfig(path=str(WIKITEXT), dataset_config="wikitext-2-v1"), Storage.at(tmp_path))
    counts = {name: (split.rows, split.words) for name, split in manifest.splits.items()}
    assert counts == {"train": (36_718, 2_051_910), "validation": (3_760, 213_886), "test": (4_358, 241_211)}


@pytest.mark.skipif(not WIKITEXT.is_dir(), reason="needs ../shared/wikitext")
def test_an_unknown_configuration_is_named_with_those_there_are(tmp_path):
    with pytest.raises(InputError, match="wikitext-2-v1"):
        fetch(DataConfig(path=str(WIKITEXT), dataset_config="wikitext-3"), Storage.at(tmp_path))
