"""`textgen data`: a look at the text before training on it, and who holds a document."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from textgen.__main__ import main

ROWS = 120


@pytest.fixture
def look(tmp_path, capsys, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs `textgen data` with a root of its own, and returns its code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["data", f"storage.root={tmp_path / 'data'}", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def notes(tmp_path) -> Path:
    """Return a file of rows, a note a row."""
    path = tmp_path / "notes.jsonl"
    rows = [{"text": f"note {number} of the [b]old[/b] tower\nand more"} for number in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


HALF = ["data.validation_fraction=0.25", "data.test_fraction=0.25"]


def test_the_documents_of_each_split_are_shown(look, notes):
    code, out, _ = look(f"data.files={notes}", *HALF)
    assert code == 0
    assert out.startswith(f"text: {ROWS} documents (")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert sum(int(rows[split][1]) for split in ("train", "validation", "test")) == ROWS
    assert "notes.jsonl:" in out and ".jsonl" in rows


def test_json_is_one_document_with_the_same_figures(look, notes):
    code, out, _ = look(f"data.files={notes}", *HALF, "--json")
    assert code == 0
    made: dict[str, Any] = json.loads(out)
    documents = {split: one["documents"] for split, one in made["text"]["splits"].items()}
    assert documents == {split: one["documents"] for split, one in made["raw"]["splits"].items()}
    assert sum(documents.values()) == ROWS


def test_tokens_are_marked_in_a_few_documents(look, notes):
    code, out, _ = look(
        f"data.files={notes}", *HALF, "tokenizer.kind=bpe", "tokenizer.vocab_size=300", "--tokens",
    )  # fmt: skip
    assert code == 0
    shown = out[out.index("bytes a token") :].splitlines()
    marked = [line.replace("|", "") for line in shown if "|" in line]
    assert len([line for line in marked if line.startswith("note ")]) == 3


def test_a_character_of_several_tokens_is_shown_once(look, tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text("so a \N{GRINNING FACE} b" if split == "validation" else "so a b")
    files = ", ".join(f"{split}: {tmp_path}/{split}.txt" for split in ("train", "validation", "test"))
    code, out, _ = look(f"data.files={{{files}}}", "tokenizer.vocab_size=257", "--tokens")
    assert code == 0
    assert out.splitlines()[-1] == "s|o| |a| |\N{GRINNING FACE}|||| |b"


def test_special_tokens_that_the_text_names_are_shown_each_time(look, notes):
    notes.write_text(notes.read_text().replace("tower", "<|endoftext|>"))
    for _ in range(2):
        _, out, _ = look(f"data.files={notes}", *HALF, "tokenizer.kind=bpe", "tokenizer.vocab_size=300", "--tokens")
        assert f"the text has `<|endoftext|>` {ROWS} times; each is read as the special token of that name" in out


def test_the_split_of_a_document_is_found_by_its_words(look, notes, tmp_path):
    assert look(f"data.files={notes}", *HALF)[0] == 0
    document = tmp_path / "one.txt"
    document.write_text("note 7 of the   [b]old[/b] tower and more\n")
    code, out, _ = look("--find", str(document), "--json")
    assert code == 0
    assert [(place["document"], place["versions"]) for place in json.loads(out)] == [("notes.jsonl:8", [])]
    assert "notes.jsonl:8; versions: none" in look("--find", str(document))[1]
    document.write_text("note 7000")
    assert look("--find", str(document))[1] == "no text holds it\n"


def test_a_file_is_found_in_a_text_that_was_cut_otherwise(look, tmp_path):
    document = tmp_path / "lines.txt"
    document.write_text("".join(f"line {number} of the old tower\n" for number in range(ROWS)))
    assert look(f"data.files={document}", *HALF, "data.document=line")[0] == 0
    code, out, _ = look("--find", str(document), "--json")
    assert code == 0
    assert {place["document"] for place in json.loads(out)} == {f"lines.txt:{number + 1}" for number in range(ROWS)}


def test_a_damaged_text_is_named_where_a_document_is_looked_for(look, notes, tmp_path, caplog):
    assert look(f"data.files={notes}", *HALF)[0] == 0
    document = tmp_path / "one.txt"
    document.write_text("note 7 of the [b]old[/b] tower and more")
    (damaged,) = tmp_path.rglob("train.documents.parquet")
    damaged.chmod(0o644)
    damaged.write_bytes(b"nothing")
    assert look("--find", str(document))[:2] == (1, "")
    assert "train.documents.parquet is damaged" in caplog.text


def test_a_few_documents_are_refused_with_how_many_are_missing(look, notes):
    notes.write_text('{"text": "one"}\n')
    code, out, err = look(f"data.files={notes}")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and "more are needed" in err


def test_a_fraction_below_the_champions_is_told_as_a_run_refuses_it(look, notes, tmp_path):
    version = tmp_path / "data" / "models" / "textgen" / "v1"
    version.mkdir(parents=True)
    (version.parent / "champion").write_text("v1\n")
    source = {"validation_fraction": 0.25, "test_fraction": 0.3}
    (version / "lineage.json").write_text(json.dumps({"raw": {"source": source}}))
    code, out, _ = look(f"data.files={notes}", *HALF)
    assert code == 0
    assert "warning: no run will train on it: data.test_fraction=0.25 is below the 0.3 of textgen v1" in out
    assert "no run will" not in look(f"data.files={notes}", *HALF, "data.test_fraction=0.3")[1]


def test_one_document_of_one_word_is_called_so(look, tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text(split)
    code, out, _ = look("data.files={train: train.txt, validation: validation.txt, test: test.txt}")
    assert code == 0
    assert "1 word: train.txt" in out and "test has 1 document, and" in out
    assert "1 words" not in out and "1 documents" not in out


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.files=nowhere"], "data.files='nowhere': no file matches"),
        (["data.files=''"], "data.files='': a folder, a file or a glob was expected"),
        (["data.files=[]"], "data.files=[]: a folder, a file or a glob was expected"),
        (["data.files=" + "x" * 300], "File name too long"),
        (["data.path=" + "x" * 300], "there is no such folder"),
        (["data.path=''"], "there is no such folder"),
        (["data.files=fifo.txt"], "no regular file"),
        (["data.files=photo.jpg"], "of no kind that is read"),
        (["data.files=binary.txt"], "binary.txt: the text is not UTF-8 near byte 0"),
        (["data.files={train: a.txt}"], "data.files"),
        (["data.files=a.txt", "data.path=."], "give one source"),
        (["data.files=notes.jsonl", "data.text_column=body"], "no column 'body' (data.text_column)"),
        (["data.files=notes.jsonl", "data.document=''"], "data.document"),
        (["data.files=notes.jsonl", "data.test_fraction=0"], "data.test_fraction=0"),
        (["data.files={train: notes.jsonl, validation: notes.jsonl, test: empty.txt}"], "data.files.test"),
        (["--find", "nowhere.txt"], "--find='nowhere.txt': no file matches"),
        (["--find", "binary.txt"], "the text is not UTF-8"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(look, notes, tmp_path, overrides, said):
    os.mkfifo(tmp_path / "fifo.txt")
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "binary.txt").write_bytes(b"\xff\x00")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = look(*overrides)
    assert (code, out) == (2, "")
    assert said in err and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_with_a_line_end_is_one_line(look, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a\n\x1b[31mb.txt").write_bytes(b"\xff")
    code, _, err = look("data.files=notes")
    assert code == 2 and err == "notes/a\\n\\x1b[31mb.txt: the text is not UTF-8 near byte 0\n"
