"""Which documents of test the champion was trained on."""

import json
import random
from pathlib import Path

import pytest

from tests.fixtures import WORDS
from textgen.publishing.contenders import seen_documents
from textgen.publishing.version import LINEAGE_FILE, PublishedManifest
from textgen.sections import SPLITS, DataConfig
from textgen.storage import Storage
from textgen.text.corpus import RawManifest, fetch, read_units

LINES = 300


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage.at(tmp_path / "data")


def write_lines(path: Path, words: int) -> Path:
    draw = random.Random(words)
    path.write_text("".join(" ".join([*draw.choices(WORDS, k=words - 1), str(n)]) + "\n" for n in range(LINES)))
    return path


def champion_of(raw: RawManifest, storage: Storage, folder: Path) -> PublishedManifest:
    """Return a version that was trained on a text."""
    folder.mkdir()
    (folder / LINEAGE_FILE).write_text(json.dumps({"raw": {"folder": storage.name(raw.folder)}}))
    return PublishedManifest(
        key="1", name="textgen", version="v1", promoted=True, reason="", checkpoint_sha256="1", tokens_key="1",
        raw_sha256={split: text.sha256 for split, text in raw.splits.items()}, bits_per_byte=None, samples=[],
        sha256={}, path=str(folder),
    )  # fmt: skip


@pytest.mark.parametrize("words", [9, 20])
def test_a_document_of_any_length_that_the_champion_was_trained_on_is_seen(tmp_path, storage, words):
    """Documents of fewer than 13 words have no run of 13, and none of them was left out."""
    data = DataConfig(files=str(write_lines(tmp_path / "notes.txt", words)), document="line")
    last, new = (fetch(data.model_copy(update={"test_fraction": part}), storage) for part in (0.1, 0.5))
    trained = set(read_units(last, "train"))
    expected = [text in trained for text in read_units(new, "test")]
    assert any(expected) and not all(expected)
    assert seen_documents(champion_of(last, storage, tmp_path / "v1"), new, storage).tolist() == expected


def test_documents_of_a_text_without_a_list_of_them_are_seen_too(tmp_path, storage):
    rows = {
        "train": ["= A =", "one two", "= B =", "three"],
        "validation": ["v"],
        "test": ["= B =", "three", "= C =", "x"],
    }

    def freeze(name: str, **changes: list[str]) -> RawManifest:
        (tmp_path / name).mkdir()
        for split in SPLITS:
            lines = [json.dumps({"text": row}) + "\n" for row in changes.get(split, rows[split])]
            (tmp_path / name / f"{split}.jsonl").write_text("".join(lines))
        return fetch(DataConfig(path=str(tmp_path / name)), storage)

    champion = champion_of(freeze("last"), storage, tmp_path / "v1")
    assert seen_documents(champion, freeze("new", train=["= D =", "four"]), storage).tolist() == [True, False]
