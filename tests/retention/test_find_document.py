"""Who holds a document: every frozen text is looked in, by its own rule, or is named."""

import json
import logging
from pathlib import Path

import pytest

from textgen.errors import Damaged, InputError
from textgen.publishing.version import LINEAGE_FILE
from textgen.retention.find_document import Asked, find_document
from textgen.sections import SPLITS, DataConfig
from textgen.storage import Storage
from textgen.text.corpus import RawManifest, fetch

NOWHERE = "in no text at all"


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage.at(tmp_path / "data")


def freeze(storage: Storage, texts: dict[str, str], **data: str) -> RawManifest:
    """Freeze a text file a split."""
    folder = storage.local.parent / "texts"
    folder.mkdir(exist_ok=True)
    files = {split: str(folder / f"{split}.txt") for split in SPLITS}
    for split in SPLITS:
        Path(files[split]).write_text(texts[split])
    return fetch(DataConfig(files=files, **data), storage)


def find(storage: Storage, text: str, **data: str) -> list[str]:
    """Return where a text is, as `split document`."""
    file = storage.local.parent / "asked.txt"
    file.write_text(text)
    return [
        f"{place.split} {place.document}" for place in find_document(Asked(file, DataConfig(**data)), storage).places
    ]


TEXTS = {"train": "one two\n\nthree four\n%%\nfive\n", "validation": "six\n%%\nseven\n", "test": "eight\n%%\nnine\n"}


@pytest.mark.parametrize(
    ("rule", "document", "place"),
    [("line", "three four", "train train.txt:2"), ("paragraphs", "one two", "train train.txt:1"),
     ("\n%%\n", "nine", "test test.txt:2"), ("\n%%\n", "one two\n\nthree four", "train train.txt:1")],
)  # fmt: skip
@pytest.mark.parametrize("today", ["file", "line"])
def test_a_document_is_found_by_the_rule_of_each_text(storage, rule, document, place, today):
    freeze(storage, TEXTS, document=rule)
    assert find(storage, document, document=today) == [place]
    assert find(storage, NOWHERE, document=today) == []


def test_a_file_of_several_documents_is_cut_as_the_text_was(storage):
    freeze(storage, TEXTS, document="line")
    assert find(storage, "nine\nten\nsix\n") == ["validation validation.txt:1", "test test.txt:3"]


def test_texts_without_a_list_of_documents_are_looked_in(tmp_path, storage):
    """Those that `datasets` reads were passed over without a word."""
    rows = {"train": ["", "= A =", "one two", "= B =", "three"], "validation": ["four", "five"], "test": ["six"]}
    (tmp_path / "mine").mkdir()
    for split in SPLITS:
        lines = [json.dumps({"text": row}) + "\n" for row in rows[split]]
        (tmp_path / "mine" / f"{split}.jsonl").write_text("".join(lines))
    fetch(DataConfig(path=str(tmp_path / "mine")), storage)
    assert find(storage, "= A =\none two\n") == ["train document 1 of train"]
    assert find(storage, "five") == ["validation document 2 of validation"]
    assert find(storage, NOWHERE) == []


def test_without_a_text_to_look_in_nothing_is_all_clear(storage):
    with pytest.raises(InputError, match=r"storage\.root=.*: there is no text"):
        find(storage, "one")
    freeze(storage, TEXTS)
    with pytest.raises(InputError, match=r"--find=.*: there is no text in it"):
        find(storage, " \n")


@pytest.mark.parametrize("file", ["manifest.json", "train.parquet", "train.documents.parquet"])
def test_a_damaged_text_is_named_and_nothing_is_all_clear(storage, file, caplog):
    caplog.set_level(logging.WARNING)
    damaged = freeze(storage, TEXTS, document="line")
    path = damaged.folder / file
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-2])
    freeze(storage, {**TEXTS, "test": "ten"})
    assert find(storage, "ten") == ["test test.txt"]
    with pytest.raises(Damaged, match="not every text could"):
        find(storage, NOWHERE)
    assert f"not looked in: {path} is" in caplog.text


def add_version(storage: Storage, version: str, raw: str) -> None:
    """Add the lineage of a version of `notes` that was trained on the text in a folder."""
    file = storage.models("notes") / version / LINEAGE_FILE
    file.parent.mkdir(parents=True)
    others = {stage: {"folder": stage, "sha256": {}} for stage in ("tokens", "checkpoint")}
    file.write_text(json.dumps({"raw": {"folder": raw, "sha256": {}}, **others}))


def test_a_version_whose_text_is_gone_is_named_and_nothing_is_all_clear(storage, caplog):
    raw = freeze(storage, TEXTS)
    for version, folder in (("v1", storage.name(raw.folder)), ("v2", "raw/files/gone")):
        add_version(storage, version, folder)
    assert find(storage, TEXTS["test"]) == ["test test.txt"]
    with pytest.raises(Damaged):
        find(storage, NOWHERE)
    assert "not looked in: raw/files/gone of notes@v2 is not there" in caplog.text


def test_the_versions_of_a_text_are_named_the_oldest_first(storage):
    raw = freeze(storage, TEXTS)
    for version in ("v10", "v2.damaged-1", "v2", "v1"):
        add_version(storage, version, storage.name(raw.folder))
    file = storage.local.parent / "asked.txt"
    file.write_text(TEXTS["test"])
    (place,) = find_document(Asked(file, DataConfig()), storage).places
    assert place.versions == ["notes@v1", "notes@v2", "notes@v10"]


def test_gpt2s_tokenizer_and_what_was_made_anew_are_no_texts_to_look_in(storage):
    raw = freeze(storage, TEXTS)
    for folder in (storage.raw("gpt2") / "607a30d7", raw.folder.with_name(f"{raw.folder.name}.damaged-1")):
        folder.mkdir(parents=True)
        (folder / RawManifest.FILE).write_text("{}")
    assert find(storage, NOWHERE) == []
