"""The report on a frozen text: how many documents, words and bytes, of which kinds, and what was left out."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from textgen.sections import SPLITS, DataConfig
from textgen.storage import Storage
from textgen.text import report
from textgen.text.corpus import fetch, left_out_now
from textgen.text.report import TextReport, report_on, text_in_words


def look(root: Path, **data: Any) -> tuple[TextReport, list[str]]:
    storage = Storage.at(root / "data")
    raw = fetch(DataConfig(**data), storage)
    found = report_on(raw, storage)
    return found, text_in_words(raw, found, left_out_now(DataConfig(**data), raw, storage))


def given(root: Path, **texts: str) -> dict[str, str]:
    for split, text in texts.items():
        (root / f"{split}.txt").write_text(text)
    return {split: str(root / f"{split}.txt") for split in SPLITS}


def test_the_amounts_are_those_of_the_files_by_split_and_ending(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    texts = [f"naïve note {number} " + "word " * (number % 7) for number in range(120)]
    for number, text in enumerate(texts[:60]):
        (folder / f"{number}.TXT").write_text(text)
    (folder / "rows.jsonl.gz").write_bytes(
        gzip.compress("\n".join(json.dumps({"text": t}) for t in texts[60:]).encode())
    )
    found, lines = look(tmp_path, files=str(folder), validation_fraction=0.3, test_fraction=0.3)
    total = Counter[str]()
    for split in found.splits.values():
        assert split.documents == sum(amount.documents for amount in split.kinds.values())
        assert split.words == sum(amount.words for amount in split.kinds.values())
        for ending, amount in split.kinds.items():
            total += Counter({f"{ending} documents": amount.documents, f"{ending} bytes": amount.bytes})
    assert total[".txt documents"] == total[".jsonl.gz documents"] == 60
    assert total[".txt bytes"] == sum(len(text.encode()) for text in texts[:60])
    assert total[".jsonl.gz bytes"] == sum(len(text.encode()) for text in texts[60:])
    words = sum(len(text.split()) for text in texts)
    assert sum(split.words for split in found.splits.values()) == words
    assert lines[0].startswith("text: 120 documents (") and lines[0].endswith(f"{words:,} words")


def test_the_longest_and_the_shortest_document_are_named_by_file_and_place(tmp_path):
    files = given(tmp_path, train="one\ntwo two\n", validation="a b c\nd\ne f\n", test="a a a\n")
    found, _ = look(tmp_path, files=files, document="line")
    of_validation = found.splits["validation"]
    assert (of_validation.longest.name, of_validation.longest.words) == ("validation.txt:1", 3)
    assert (of_validation.shortest.name, of_validation.shortest.words) == ("validation.txt:2", 1)


def test_a_file_that_is_one_document_has_no_place_and_a_row_has_one(tmp_path):
    given(tmp_path, train="one\n", validation="two\n")
    (tmp_path / "test.csv").write_text("text\nthree\n")
    files = {split: f"{tmp_path}/{split}.*" for split in SPLITS}
    found, _ = look(tmp_path, files=files)
    assert [found.splits[split].longest.name for split in SPLITS] == ["train.txt", "validation.txt", "test.csv:1"]


def test_what_was_left_out_is_told(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"note {number}")
    for name, text in {"copy.txt": "note  7", "blank.md": " \n", "p.jpg": "", "q.jpg": "", ".h.txt": "hidden"}.items():
        (folder / name).write_text(text)
    _, lines = look(tmp_path, files=str(folder), validation_fraction=0.3, test_fraction=0.3)
    assert "copies: 1 document with the words of another one, left out" in lines
    assert "empty: 1 document without a word, left out" in lines
    assert "left out of folders: 2 .jpg, 1 hidden" in lines
    assert not [line for line in lines if "were cut" in line]
    (folder / "letter.docx").touch()
    (folder / "p.jpg").unlink()
    _, lines = look(tmp_path, files=str(folder), validation_fraction=0.3, test_fraction=0.3)
    assert "left out of folders: 1 .docx, 1 .jpg, 1 hidden" in lines, "as it is now: no key of a text has it"


def test_that_long_files_were_cut_is_told(tmp_path):
    paragraphs = [" ".join(f"{number}-{word}" for word in range(200)) for number in range(300)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    found, lines = look(tmp_path, files=str(tmp_path / "book.txt"), validation_fraction=0.3, test_fraction=0.3)
    assert [line for line in lines if line.startswith("long files were cut")]
    assert found.splits["train"].longest.name.startswith("book.txt:")


def test_what_stands_in_train_is_told_with_the_documents_that_have_most_of_it(tmp_path):
    shared = " ".join(f"w{number}" for number in range(30))
    own = " ".join(f"v{number}" for number in range(30))
    files = given(tmp_path, train=f"{shared}\n", validation=f"{own}\n{shared}\n", test=f"{own}\n")
    found, lines = look(tmp_path, files=files, document="line")
    assert found.splits["validation"].overlap == pytest.approx(0.5)
    assert found.splits["validation"].longest_overlap == 30
    assert [(one.name, one.share) for one in found.splits["validation"].worst] == [("validation.txt:2", 1.0)]
    assert (found.splits["test"].overlap, found.splits["test"].worst, found.splits["train"].overlap) == (0, [], None)
    assert lines[-1] == (
        "overlap: 50.0% of validation, 0.0% of test stands in train, in runs of 13 words or whole documents; "
        "the longest has 30 words"
    )


@pytest.mark.parametrize("kind", ["files", "path"])
def test_a_short_document_that_stands_in_train_is_found_whole(tmp_path, kind):
    """No run of 13 words is in it: one file of short rows as all three splits was measured as no overlap."""
    rows = {"train": ["one two", "three"], "validation": ["four", "one  two"], "test": ["three"]}
    (tmp_path / "mine").mkdir()
    for split in SPLITS:
        lines = [json.dumps({"text": row}) + "\n" for row in rows[split]]
        (tmp_path / "mine" / f"{split}.jsonl").write_text("".join(lines))
    files = {split: str(tmp_path / "mine" / f"{split}.jsonl") for split in SPLITS}
    found, lines = look(tmp_path, **({"files": files} if kind == "files" else {"path": str(tmp_path / "mine")}))
    assert [found.splits[split].overlap for split in ("validation", "test")] == pytest.approx([2 / 3, 1])
    assert [(one.share, one.longest) for one in found.splits["validation"].worst] == [(1, 2)]
    assert "66.7% of validation, 100.0% of test" in lines[-1]


def test_a_report_is_made_once_for_a_text(tmp_path, monkeypatch):
    files = given(tmp_path, train="a b\n", validation="c\n", test="d\n")
    first, _ = look(tmp_path, files=files)
    monkeypatch.setattr(report, "Runs", None)
    again, _ = look(tmp_path, files=files)
    assert (again, first.built, again.built) == (first, True, False)
    assert first.folder.parent == tmp_path / "data" / "reports"


def test_the_same_text_in_other_files_has_a_report_of_its_own(tmp_path):
    """The report was known by the text alone: the second one named the files of the first."""
    of_lines, _ = look(tmp_path, files=given(tmp_path, train="a b\n", validation="c\n", test="d\n"), document="line")
    files = {split: str(tmp_path / f"{split}.csv") for split in SPLITS}
    for split, text in {"train": "a b", "validation": "c", "test": "d"}.items():
        Path(files[split]).write_text(f'text\n"{text}\n"\n')
    of_rows, _ = look(tmp_path, files=files)
    for found, ending in ((of_lines, ".txt"), (of_rows, ".csv")):
        assert list(found.splits["test"].kinds) == [ending]
        assert found.splits["test"].longest.name == f"test{ending}:1"


def test_documents_of_a_folder_in_hub_layout_are_counted_and_numbered(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for split in SPLITS:
        rows = [{"text": text} for text in (" = A = ", "", "one two", " = B = ", "three")]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, _ = look(tmp_path, path=str(folder))
    assert found.splits["test"].documents == 2 and found.splits["test"].kinds == {}
    assert found.splits["test"].longest.name == "document 1 of test"
