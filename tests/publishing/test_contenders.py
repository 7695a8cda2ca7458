"""Which documents of test the champion was trained on."""

import json
import random
import shutil
from pathlib import Path

import pytest

from tests.fixtures import WORDS
from textgen.errors import Damaged
from textgen.publishing.contenders import seen_documents
from textgen.publishing.version import LINEAGE_FILE, PublishedManifest
from textgen.sections import HELD_OUT, SPLITS, DataConfig
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


def champion_of(raw: RawManifest, storage: Storage, folder: Path, *earlier: RawManifest) -> PublishedManifest:
    """Return a version that was trained on a text, from models of earlier ones."""
    folder.mkdir()
    texts = {"earlier_texts": [text.key for text in earlier], "names_all_texts": True}
    own = {"folder": storage.name(raw.folder), "key": raw.key}
    (folder / LINEAGE_FILE).write_text(json.dumps({"raw": own, **texts}))
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
    expected = {split: [text in trained for text in read_units(new, split)] for split in HELD_OUT}
    assert any(expected["test"]) and not all(expected["test"])
    assert seen(champion_of(last, storage, tmp_path / "v1"), new, storage) == expected


def seen(champion: PublishedManifest, raw: RawManifest, storage: Storage) -> dict[str, list[bool]] | None:
    found = seen_documents(champion, raw, storage)
    return None if found is None else {split: seen_D.tolist() for split, seen_D in found.items()}


def test_documents_of_each_text_that_the_champion_came_from_are_seen(tmp_path, storage, caplog):
    """What the model before it was trained on counted as new to the champion that started from it."""
    words = [" ".join(random.Random(number).choices(WORDS, k=30)) for number in range(8)]

    def freeze(name: str, train: list[str], validation: list[str], test: list[str]) -> RawManifest:
        (tmp_path / name).mkdir()
        texts = {"train": train, "validation": validation, "test": test}
        for split, lines in texts.items():
            (tmp_path / name / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))
        files = {split: str(tmp_path / name / f"{split}.txt") for split in SPLITS}
        return fetch(DataConfig(files=files, document="line"), storage)

    first = freeze("first", [words[0], words[1]], [words[6]], [words[7]])
    last = freeze("last", [words[2], words[1]], [words[6]], [words[7]])
    new = freeze("new", words[2:4], [words[0], words[4]], [f"more {words[1]} and more", words[5], words[2]])
    assert seen(champion_of(last, storage, tmp_path / "v1", first), new, storage) == {
        "validation": [True, False], "test": [True, False, True],
    }  # fmt: skip
    assert seen(champion_of(last, storage, tmp_path / "v2", first), last, storage) == {
        "validation": [False], "test": [False],
    }  # fmt: skip
    assert seen(champion_of(last, storage, tmp_path / "v3"), last, storage) is None
    shutil.rmtree(first.folder)
    without_first = seen(champion_of(last, storage, tmp_path / "v4", first), new, storage)
    assert without_first == {"validation": [False, False], "test": [True, False, True]}
    assert f"v1 started from a model of the text {first.key}, which is not here" in caplog.text
    shutil.rmtree(last.folder)
    with pytest.raises(Damaged, match=last.key):
        seen_documents(champion_of(last, storage, tmp_path / "v5"), new, storage)


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
    found = seen(champion, freeze("new", train=["= D =", "four"]), storage)
    assert found == {"validation": [False], "test": [True, False]}
