"""How local files become splits: which document is in which, for ever, what is kept once, and what is refused."""

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textgen import files
from textgen.errors import InputError
from textgen.sections import SPLITS, DataConfig
from textgen.storage import Storage
from textgen.text import documents, freezing, readers, splitting
from textgen.text.corpus import RawManifest, fetch, list_documents, read_rows, read_units
from textgen.text.splitting import FEW_DOCUMENTS, TOO_FEW_DOCUMENTS

EXAMPLES = 100
WORDS = ["river", "tower", "lamp", "old", "small", "winds", "under", "stone", "light", "house", "the", "a", "and", "of"]
PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
PACK[".zst"] = lambda data: pyarrow.compress(data, codec="zstd", asbytes=True)


def some_text(words: int, seed: object) -> str:
    return " ".join(random.Random(str(seed)).choices(WORDS, k=words))


def notes(folder: Path, numbers: Iterable[int]) -> Path:
    """Write a file of 12 words of its own for each number, and return the folder."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        (folder / f"{number:03}.txt").write_text(some_text(12, number) + "\n")
    return folder


def freeze(root: Path, **data: Any) -> RawManifest:
    return fetch(DataConfig(**data), Storage.at(root / "data"))


def units(raw: RawManifest) -> dict[str, list[str]]:
    return {split: list(read_units(raw, split)) for split in SPLITS}


def split_of(raw: RawManifest) -> dict[str, str]:
    """Return the split of each document by its text."""
    return {text: split for split, texts in units(raw).items() for text in texts}


def refusal(root: Path, **data: Any) -> str:
    with pytest.raises(InputError) as error:
        freeze(root, **data)
    assert "\n" not in str(error.value)
    assert not list((root / "data").rglob("*.parquet"))
    assert not list((root / "data").rglob(".*.*/")), "and nothing is left half-written"
    return str(error.value)


def test_every_document_is_in_one_split_and_its_text_is_as_it_was(tmp_path):
    folder = notes(tmp_path / "notes", range(200))
    raw = freeze(tmp_path, files=str(folder))
    found = [text for texts in units(raw).values() for text in texts]
    assert sorted(found) == sorted(path.read_text() for path in folder.iterdir())
    assert {split: one.documents for split, one in raw.splits.items()} == {s: len(t) for s, t in units(raw).items()}
    assert 2 < len(units(raw)["test"]) < 20 and 2 < len(units(raw)["validation"]) < 20


def test_no_document_moves_when_files_are_added_renamed_deleted_and_edited(tmp_path):
    folder = notes(tmp_path / "notes", range(100))
    before = split_of(freeze(tmp_path, files=str(folder)))
    notes(folder, range(100, 120))
    (folder / "in").mkdir()
    for number in range(10):
        (folder / f"{number:03}.txt").rename(folder / "in" / f"z{9 - number}.MD")
    for number in range(10, 15):
        (folder / f"{number:03}.txt").unlink()
    edited = folder / "015.txt"
    old = edited.read_text()
    edited.write_text(f"{old} and more")
    after = split_of(freeze(tmp_path, files=str(folder)))
    assert len(after) == 115 and old not in after
    stayed = set(before) & set(after)
    assert len(stayed) == 94
    assert {text: after[text] for text in stayed} == {text: before[text] for text in stayed}


def test_a_document_is_known_by_its_words_and_not_by_the_white_space_between(tmp_path, monkeypatch):
    texts = [some_text(30, number) for number in range(60)]
    (tmp_path / "a.txt").write_text("\n---\n".join(texts))
    (tmp_path / "b.txt").write_bytes("\r\n---\r\n".join(text.replace(" ", "\r\n ") for text in texts).encode())
    a = freeze(tmp_path, files=str(tmp_path / "a.txt"), document="\n---\n")
    monkeypatch.setattr(documents, "PART_CHARACTERS", 7)
    monkeypatch.setattr(readers, "PART_CHARACTERS", 7)
    b = freeze(tmp_path, files=str(tmp_path / "b.txt"), document="\n---\n")
    of_b = {" ".join(text.split()): split for text, split in split_of(b).items()}
    assert of_b == split_of(a)
    hashes = [list_documents(raw, "train").column("hash").to_pylist() for raw in (a, b)]
    assert hashes[0] == hashes[1]


def test_the_split_of_a_text_is_the_same_for_ever(tmp_path):
    """These were computed once; a change of the hash or of the salt moves the documents of everybody."""
    raw = freeze(tmp_path, files=str(notes(tmp_path / "notes", range(60))))
    held_out = {s: [d["file"] for d in list_documents(raw, s).to_pylist()] for s in ("validation", "test")}
    assert held_out == {
        "validation": ["011.txt", "022.txt", "037.txt"],
        "test": ["005.txt", "009.txt", "010.txt", "036.txt"],
    }


@pytest.mark.parametrize(
    ("document", "hint"),
    [
        ("paragraph", "did you mean paragraphs?"),
        ("lines", "did you mean line?"),
        ("File ", "did you mean file?"),
        (r"\n\n", """'data.document="\\n\\n"'"""),
        ("===", "between documents"),
    ],
)
def test_a_separator_that_no_file_has_is_refused(tmp_path, document, hint):
    folder = notes(tmp_path / "notes", range(3))
    (folder / "a.jsonl").write_text(json.dumps({"text": "a row"}) + "\n" + json.dumps({"text": "another"}) + "\n")
    said = refusal(tmp_path, files=str(folder), document=document)
    assert said.startswith(f"data.document={document!r}: ") and said.endswith(hint)


def test_a_separator_may_be_in_some_of_the_files_and_is_not_looked_for_in_tables(tmp_path):
    folder = notes(tmp_path / "notes", range(40))
    (folder / "some.txt").write_text("one---two")
    assert {"one", "two"} < split_of(freeze(tmp_path, files=str(folder), document="---")).keys()
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": some_text(9, n)}) + "\n" for n in range(80)))
    assert len(split_of(freeze(tmp_path, files=str(tmp_path / "a.jsonl"), document="---"))) == 80


def test_a_larger_fraction_moves_documents_out_of_train_alone(tmp_path):
    folder = notes(tmp_path / "notes", range(150))
    small = units(freeze(tmp_path, files=str(folder)))
    large = units(freeze(tmp_path, files=str(folder), validation_fraction=0.2, test_fraction=0.3))
    for split in ("validation", "test"):
        assert set(small[split]) < set(large[split])


@pytest.mark.parametrize("ending", [ending for ending in PACK if ending])
def test_the_same_text_packed_gives_the_same_documents_and_splits(tmp_path, ending):
    text = "\n".join(some_text(30, number) for number in range(80)) + "\n"
    made = {}
    for packing in ("", ending):
        (tmp_path / f"a.txt{packing}").write_bytes(PACK[packing](text.encode()))
        made[packing] = freeze(tmp_path, files=str(tmp_path / f"a.txt{packing}"), document="line")
    assert units(made[ending]) == units(made[""])
    assert made[ending].key != made[""].key


def test_the_same_rows_of_every_kind_give_the_same_splits_and_kinds_may_be_mixed(tmp_path):
    texts = [some_text(20, number) for number in range(80)]
    lines = {
        "a.jsonl": "".join(json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(texts)),
        "a.csv": "url,text\n" + "".join(f'u,"{text}"\n' for text in texts),
        "a.tsv": "text\tx\n" + "".join(f"{text}\t1\n" for text in texts),
    }
    for name, content in lines.items():
        (tmp_path / name).write_text(content)
    pyarrow.parquet.write_table(pyarrow.table({"id": range(80), "text": texts}), tmp_path / "a.parquet")
    found = [split_of(freeze(tmp_path, files=str(tmp_path / name))) for name in [*lines, "a.parquet"]]
    assert found[0].keys() == set(texts) and all(one == found[0] for one in found)
    together = freeze(tmp_path, files=[str(tmp_path / name) for name in [*lines, "a.parquet"]])
    assert split_of(together) == found[0]
    assert together.reading.copies == 240 and together.reading.files == {"csv": 1, "jsonl": 1, "parquet": 1, "tsv": 1}


def test_shards_may_differ_in_columns_that_nobody_reads(tmp_path):
    for number, column in enumerate(["id", "url"]):
        texts = [some_text(20, (number, row)) for row in range(40)]
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, column: texts}), tmp_path / f"{number}.parquet")
    raw = freeze(tmp_path, files=f"{tmp_path}/*.parquet")
    assert sum(split.documents for split in raw.splits.values()) == 80


def test_copies_are_kept_once_and_counted(tmp_path):
    folder = notes(tmp_path / "notes", range(60))
    alone = freeze(tmp_path, files=str(folder))
    for number in range(5):
        (folder / f"copy-{number}.txt").write_text(f"\n {some_text(12, number)}  ")
    (folder / "blank.txt").write_text(" \n")
    raw = freeze(tmp_path, files=str(folder))
    assert split_of(raw) == split_of(alone)
    assert (raw.reading.copies, raw.reading.empty, alone.reading.copies) == (5, 1, 0)


@pytest.mark.parametrize("kind", [".txt", ".md", ".jsonl", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("packing", PACK)
def test_a_file_of_no_bytes_is_an_empty_document_whatever_its_kind(tmp_path, kind, packing):
    folder = notes(tmp_path / "notes", range(60))
    (folder / f"none{kind}{packing}").touch()
    (folder / f"packed{kind}{packing}").write_bytes(PACK[packing](b""))
    raw = freeze(tmp_path, files=str(folder))
    assert (raw.reading.empty, len(split_of(raw))) == (2, 60)


def test_given_splits_keep_their_copies(tmp_path):
    for split in SPLITS:
        (tmp_path / f"{split}.txt").write_text("the same line\nthe same line\nanother\n")
    raw = freeze(tmp_path, files={split: str(tmp_path / f"{split}.txt") for split in SPLITS}, document="line")
    assert units(raw) == {split: ["the same line\n", "the same line\n", "another\n"] for split in SPLITS}
    assert raw.reading.copies == 0


def test_tables_of_given_splits_keep_their_rows_as_they_are(tmp_path):
    rows = ["", " = A = \n", "", "a\n", "a\n", " = B = \n", ""]
    for split in SPLITS:
        pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / f"{split}.parquet")
    raw = freeze(tmp_path, files={split: str(tmp_path / f"{split}.parquet") for split in SPLITS})
    assert list(read_rows(raw, "test")) == rows
    assert (raw.splits["test"].rows, raw.splits["test"].documents) == (7, 2)


def test_an_article_of_wikitext_is_a_document_and_is_never_cut_by_our_split(tmp_path):
    articles = [[f" = Title {n} = \n", "", f" {some_text(9, n)} \n", " = = Part = = \n", "more \n"] for n in range(80)]
    rows = [row for article in articles for row in article]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "a.parquet")
    raw = freeze(tmp_path, files=str(tmp_path / "a.parquet"))
    assert split_of(raw).keys() == {"".join(article) for article in articles}


def test_long_files_are_cut_where_the_splits_would_be_small_and_join_to_the_file(tmp_path):
    text = "\n\n".join(some_text(150, number) for number in range(1200)) + "\n"
    (tmp_path / "book.txt").write_text(text)
    raw = freeze(tmp_path, files=str(tmp_path / "book.txt"))
    assert raw.reading.cut
    listed = [(d["number"], d["words"], s) for s in SPLITS for d in list_documents(raw, s).to_pylist()]
    texts = {s: iter(read_units(raw, s)) for s in SPLITS}
    assert "".join(next(texts[split]) for _, _, split in sorted(listed)) == text
    assert sorted(number for number, _, _ in listed) == list(range(1, len(listed) + 1))
    assert all(1000 <= words < 1150 for _, words, _ in sorted(listed)[:-1])


@pytest.mark.parametrize(("paragraphs", "cut_words"), [(2000, 1000), (400, 500), (190, 250), (80, 500)])
def test_long_files_are_cut_shorter_where_the_gate_would_have_too_few_documents(tmp_path, paragraphs, cut_words):
    text = "\n\n".join(some_text(120, number) for number in range(paragraphs))
    (tmp_path / "book.txt").write_text(text)
    raw = freeze(tmp_path, files=str(tmp_path / "book.txt"), validation_fraction=0.1, test_fraction=0.1)
    assert (raw.reading.cut, raw.reading.cut_words) == (True, cut_words)
    held_out = min(raw.splits[split].documents for split in ("validation", "test"))
    assert (held_out >= TOO_FEW_DOCUMENTS) == (paragraphs > 80)
    sizes = [document["words"] for split in SPLITS for document in list_documents(raw, split).to_pylist()]
    assert sorted(sizes)[1] >= cut_words and max(sizes) < cut_words + 120


@pytest.mark.parametrize("between", ["\n", ""])
def test_one_file_without_spaces_between_words_has_documents_enough(tmp_path, between):
    draw = random.Random(0)
    sentences = ["".join(chr(draw.randint(0x4E00, 0x9FFF)) for _ in range(79)) + "。" for _ in range(3000)]
    (tmp_path / "book.txt").write_text(text := between.join(sentences))
    raw = freeze(tmp_path, files=str(tmp_path / "book.txt"))
    assert raw.reading.cut and sum(split.documents for split in raw.splits.values()) > 50
    assert sum(split.text_bytes for split in raw.splits.values()) == len(text.encode())


def test_long_files_are_not_cut_shorter_where_that_gives_no_more_held_out_documents(tmp_path):
    folder = notes(tmp_path / "notes", range(60))
    (folder / "long.txt").write_text("\n\n".join(some_text(100, number) for number in range(25)))
    raw = freeze(tmp_path, files=str(folder), validation_fraction=0.02, test_fraction=0.02)
    assert (raw.reading.cut, raw.reading.cut_words) == (True, 1000)
    assert min(raw.splits[split].documents for split in ("validation", "test")) < TOO_FEW_DOCUMENTS


def test_long_files_are_not_cut_where_the_splits_are_large_enough(tmp_path):
    folder = notes(tmp_path / "notes", range(150))
    long = "\n\n".join(some_text(100, number) for number in range(30))
    (folder / "long.txt").write_text(long)
    few = freeze(tmp_path, files=str(folder))
    many = freeze(tmp_path, files=str(folder), validation_fraction=0.3, test_fraction=0.3)
    assert min(many.splits[split].documents for split in ("validation", "test")) >= FEW_DOCUMENTS
    assert few.reading.cut and long not in split_of(few)
    assert not many.reading.cut and long in split_of(many)


def test_a_long_row_of_a_table_is_not_cut(tmp_path):
    texts = ["\n\n".join(some_text(100, (row, number)) for number in range(30)) for row in range(100)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    raw = freeze(tmp_path, files=str(tmp_path / "a.jsonl"))
    assert not raw.reading.cut and split_of(raw).keys() == set(texts)


def test_an_empty_split_says_that_copies_were_left_out(tmp_path):
    (tmp_path / "a.txt").write_text("the same\n" * 500)
    said = refusal(tmp_path, files=str(tmp_path / "a.txt"), document="line")
    assert "split is empty: 1 document (499 more with the same words left out) and none of them in it" in said


def test_an_empty_split_says_how_many_documents_are_missing(tmp_path):
    folder = notes(tmp_path / "notes", range(2))
    for split, fraction in (("validation", 0.05), ("test", 0.02)):
        both = {"validation_fraction": 0.5, "test_fraction": 0.4} | {f"{split}_fraction": fraction}
        said = _said_of_split(tmp_path, split, str(folder), both)
        assert f"about {round(1 / fraction)} more are needed" in said


def _said_of_split(tmp_path: Path, split: str, files: str, fractions: dict[str, float]) -> str:
    """Return what is said of an empty split, of the first of many small texts that leave that split empty."""
    for seed in range(200):
        for number, path in enumerate(sorted(Path(files).iterdir())):
            path.write_text(some_text(5, (split, seed, number)))
        said = refusal(tmp_path / f"{seed}", files=files, **fractions)
        if f"data.files: the {split} split is empty" in said:
            return said
    raise AssertionError(split)


def test_an_empty_train_split_says_how_many_documents_are_missing_too(tmp_path):
    folder = notes(tmp_path / "notes", range(1))
    said = _said_of_split(tmp_path, "train", str(folder), {"validation_fraction": 0.45, "test_fraction": 0.45})
    assert (
        "the train split is empty: 1 document and none of them in it; with data.validation_fraction=0.45 and "
        "data.test_fraction=0.45 about 10 more are needed"
    ) in said


@pytest.mark.parametrize("content", ["", " \n\t\u2003\n", "\ufeff"])
def test_files_without_a_word_are_refused(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    assert refusal(tmp_path, files=str(tmp_path / "a.txt")).startswith("data.files")


@pytest.mark.parametrize("fraction", [0, 1e-320, 1e-17, 1, 1.5, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_fraction_is_a_share_of_at_least_a_millionth(split, fraction):
    with pytest.raises(ValueError, match="fraction"):
        DataConfig(files="a", **{f"{split}_fraction": fraction})


@pytest.mark.parametrize("fractions", [(1e-6, 1e-6), (1e-6, 1 - 2e-6), (1 - 2e-6, 1e-6)])
def test_the_smallest_fractions_are_counted_with(tmp_path, fractions):
    (tmp_path / "a.txt").write_text("a\nb\n")
    validation, test = fractions
    data = {"files": str(tmp_path / "a.txt"), "validation_fraction": validation, "test_fraction": test}
    assert "split is empty" in refusal(tmp_path, document="line", **data)


@pytest.mark.parametrize("change", ["edited", "longer", "shorter", "gone"])
def test_a_file_that_is_changed_between_two_readings_is_refused(tmp_path, monkeypatch, change):
    path = tmp_path / "a.txt"
    text = "".join(some_text(9, number) + "\n" for number in range(90))
    path.write_text(text)
    taken = splitting.take_census

    def take_and_change(found: splitting.SourceDocuments) -> splitting.Census:
        census = taken(found)
        match change:
            case "edited":
                path.write_text(text.replace("river", "lake!"))
            case "longer":
                path.write_text(text + "more\n" * 3)
            case "shorter":
                path.write_text(text[: len(text) // 2])
            case "gone":
                path.unlink()
        return census

    monkeypatch.setattr(splitting, "take_census", take_and_change)
    said = refusal(tmp_path, files=str(path), document="line")
    assert str(path) in said and ("No such file" if change == "gone" else "was changed while it was read") in said


def test_a_name_of_bytes_that_are_no_text_is_frozen(tmp_path):
    folder = notes(tmp_path / "notes", range(60))
    (folder / "000.txt").rename(folder / "\udcff\n.txt")
    raw = freeze(tmp_path, files=str(folder))
    assert "\\udcff\\n.txt" in [d["file"] for s in SPLITS for d in list_documents(raw, s).to_pylist()]


def test_our_split_of_long_texts_needs_no_more_than_parts_of_them(tmp_path, monkeypatch):
    for module in (documents, readers):
        monkeypatch.setattr(module, "PART_CHARACTERS", 50)
    monkeypatch.setattr(freezing, "WRITE_CHARACTERS", 200)
    folder = notes(tmp_path / "notes", range(60))
    raw = freeze(tmp_path, files=str(folder))
    assert sorted(split_of(raw)) == sorted(path.read_text() for path in folder.iterdir())
    assert max(len(row) for row in read_rows(raw, "train")) <= 50
    assert pyarrow.parquet.ParquetFile(raw.folder / "train.parquet").num_row_groups > 5


LINES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=30)


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None)
@given(LINES, st.sampled_from(["file", "line", "paragraphs", "\n", "\n\n", "ab", "."]), st.integers(1, 9))
def test_any_text_is_splits_or_one_line_and_nothing_is_written_outside_the_root(
    tmp_path_factory, lines, document, part_characters
):
    top = tmp_path_factory.mktemp("any")
    (top / "a.txt").write_text("\n".join(lines), newline="")
    data = {"files": str(top / "a.txt"), "document": document, "validation_fraction": 0.3, "test_fraction": 0.3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "flush", lambda path: None)  # the disk takes its time for each of the examples
        for module in (documents, readers):
            patch.setattr(module, "PART_CHARACTERS", part_characters)
        try:
            raw = freeze(top, **data)
        except InputError as error:
            assert "\n" not in str(error)
            assert not list(top.rglob("*.parquet"))
        else:
            assert all(text.split() for texts in units(raw).values() for text in texts)
    assert sorted(path.name for path in top.iterdir() if path.name != "data") == ["a.txt"]
