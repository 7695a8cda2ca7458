"""Every key of the configuration as a person reads it."""

import re
from pathlib import Path
from typing import Any

import pytest

from textgen.config import find_config, known_keys, load_config, sections
from textgen.errors import InputError
from textgen.settings import COMMAND_LINE, DEFAULT, OTHER_KEYS, Setting, as_typed, list_settings

YAML = """
seed: 7
data: {dataset_name: wikitext, files: {train: a, validation: b, test: c}}
training: {batch_size: 3, max_steps: 50, warmup_steps: 5}
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(YAML)
    return path


def by_key(path: Path | None, *overrides: str) -> dict[str, Setting]:
    return {setting.key: setting for setting in list_settings(path, list(overrides))}


def test_every_key_is_there_once_and_in_order():
    keys = [setting.key for setting in list_settings(None, [])]
    assert keys == [key for key in known_keys() if key not in sections()]


def test_every_key_is_described_in_whole_sentences():
    for setting in list_settings(None, []):
        assert re.fullmatch(r"[A-Z].*\.", setting.meaning), setting
        assert setting.bounds, setting


def test_a_value_has_the_place_that_it_came_from(file):
    found = by_key(
        file, "training.batch_size=4", "training.eval_every=9", "data.files.test=d", "evaluation={stride: 8}"
    )
    origins = {key: setting.origin for key, setting in found.items() if setting.origin != DEFAULT}
    assert origins == {
        "seed": str(file), "data.dataset_name": str(file), "training.max_steps": str(file),
        "training.warmup_steps": str(file), "data.files": COMMAND_LINE, "training.batch_size": COMMAND_LINE,
        "training.eval_every": COMMAND_LINE, "evaluation.stride": COMMAND_LINE,
    }  # fmt: skip
    assert found["training.batch_size"].value == 4
    assert found["data.files"].value == {"train": "a", "validation": "b", "test": "d"}


def test_a_section_of_the_command_line_takes_the_place_of_the_files(file):
    found = by_key(file, "training={max_steps: 60, warmup_steps: 6}")
    assert (found["training.batch_size"].origin, found["training.batch_size"].value) == (DEFAULT, 32)
    assert found["training.max_steps"].origin == COMMAND_LINE


def test_a_value_that_follows_from_others_is_called_that():
    found = by_key(None, "training.epochs=2")
    assert (found["training.max_steps"].value, found["training.max_steps"].default) == (None, 1000)
    assert found["training.max_steps"].origin == OTHER_KEYS


def test_a_value_is_the_one_that_a_run_has(file):
    config = load_config(file, ["model.head_dim=16"]).model_dump(mode="json")
    for setting in list_settings(file, ["model.head_dim=16"]):
        section, _, name = setting.key.rpartition(".")
        assert setting.value == (config[section] if section else config)[name]


def test_what_differs_from_its_default_is_known(file):
    found = by_key(file, "training.eval_blocks=512")
    assert {key for key, setting in found.items() if setting.differs} == {
        "seed", "data.files", "training.batch_size", "training.max_steps", "training.warmup_steps",
    }  # fmt: skip
    assert found["training.eval_blocks"].origin == COMMAND_LINE


def test_a_null_is_shown_with_what_it_stands_for():
    found = by_key(None, "model.hidden_size=96", "model.num_attention_heads=3")
    assert (found["model.head_dim"].value, found["model.head_dim"].stands_for) == (None, 32)
    assert found["model.num_key_value_heads"].stands_for == 3
    assert found["data.path"].stands_for is None


@pytest.mark.parametrize(
    ("key", "bounds"),
    [
        ("training.batch_size", "integer >= 1"),
        ("training.max_steps", "integer >= 1 or null"),
        ("training.muon_momentum", "number >= 0 and < 1"),
        ("tokenizer.vocab_size", "integer >= 257 and <= 2,147,483,648"),
        ("training.compile", "true, false or auto"),
        ("training.devices", "integer >= 1 or auto"),
        ("publish.policy", "gate, always or never"),
        ("data.files", "text, a list, a mapping or null"),
        ("data.text_column", "text of at least 1 character"),
        ("name", "text that matches ^[A-Za-z0-9][A-Za-z0-9._-]*$ and of at most 100 characters"),
    ],
)
def test_bounds_are_in_words(key, bounds):
    assert by_key(None)[key].bounds == bounds


TEXTS = ["a b", "*.txt", "null", "'a'", '"', "[a", "{a}.md", " a", "", "\n\n", "\x1b[31m", "塔 #1", "2024", "a=b", "~"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_shown_as_one_types_it(text):
    assert as_typed(text).isprintable()
    if text:
        assert load_config(None, [f"data.document={as_typed(text)}"]).data.document == text


@pytest.mark.parametrize("name", ["default", "wikitext2"])
def test_every_value_is_shown_as_one_types_it(name):
    """What is shown, typed in again, makes the same configuration."""
    shown = list_settings(find_config(name), [])
    typed = [f"{setting.key}={as_typed(setting.value)}" for setting in shown]
    assert load_config(None, typed) == load_config(find_config(name), [])


@pytest.mark.parametrize("value", [1e-6, 1e-3, 604_800.0, 0.0, True, None, 3, ["a", "塔"], {"train": ["a"]}])
def test_a_value_that_is_no_text_is_short_yaml(value: Any):
    assert as_typed(value) in {
        "1e-06", "0.001", "604800", "0", "true", "null", "3", '["a", "塔"]', '{"train": ["a"]}',
    }  # fmt: skip


def test_a_mistake_is_one_line(file):
    with pytest.raises(InputError, match=r"^training\.batchsize=3: unknown key; the nearest is training\.batch_size$"):
        list_settings(file, ["training.batchsize=3"])
