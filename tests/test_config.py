"""The configuration: defaults, precedence, and one line for each mistake."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from textgen.config import Config, load_config, parse_config
from textgen.errors import InputError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def mistake(tmp_path: Path, yaml: str, *overrides: str) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(yaml)
    with pytest.raises(InputError) as error:
        load_config(path, list(overrides))
    return str(error.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_configs_of_the_project_are_valid(path):
    assert load_config(path, []).data.seq_length > 0


def test_the_smallest_old_style_file_is_valid():
    config = parse_config(
        {
            "data": {"dataset_name": "wikitext", "dataset_config": "wikitext-2-raw-v1", "seq_length": 128},
            "training": {"batch_size": 32},
        }
    )
    assert config.data.dataset_name == "Salesforce/wikitext"
    assert config.training.batch_size == 32


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("seed: 7\ntraining: {batch_size: 3, learning_rate: 3e-3}\n")
    config = load_config(path, ["training.batch_size=5", "name=mine", "data.files={train: a, validation: b, test: c}"])
    assert (config.seed, config.training.batch_size, config.training.learning_rate) == (7, 5, 0.003)
    assert (config.name, config.data.files["test"]) == ("mine", "c")
    assert config.evaluation == Config().evaluation


def test_an_override_builds_a_section_that_the_file_leaves_out(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("training:\n")
    assert load_config(path, ["training.epochs=2.5"]).training.epochs == 2.5


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValidationError):
        Config().seed = 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.batchsize=3", ["training.batchsize=3", "unknown key", "training.batch_size"]),
        ("trainin.batch_size=3", ["trainin", "unknown key", "training"]),
        ("training.batch_size=many", ["training.batch_size='many'", "integer"]),
        ("training.batch_size=2.5", ["training.batch_size=2.5", "integer"]),
        ("training.batch_size=true", ["training.batch_size=True", "integer"]),
        ("training.batch_size=0", ["training.batch_size=0", "greater than or equal to 1"]),
        ("training.learning_rate=.inf", ["training.learning_rate=inf", "finite"]),
        ("model.hidden_size=130", ["model.hidden_size=130", "num_attention_heads=4"]),
        ("model.head_dim=3", ["model.head_dim=3", "even"]),
        ("model.num_key_value_heads=3", ["model.num_key_value_heads=3", "multiple"]),
        ("model.dropout=1.0", ["model.dropout=1.0", "less than 1"]),
        ("tokenizer.vocab_size=3000000000", ["tokenizer.vocab_size=3000000000", "less than or equal to 2147483648"]),
        ("tokenizer={kind: bpe, path: here}", ["tokenizer.path='here'", "gpt2"]),
        ("data.files={train: a.txt}", ["validation, test"]),
        ("data={path: a, files: {train: a, validation: b, test: c}}", ["data.files", "data.path", "one source"]),
        ("training.epochs=3", ["training.max_steps=10", "training.epochs=3"]),
        ("training.warmup_steps=10", ["training.warmup_steps=10", "training.max_steps=10"]),
        ("evaluation.stride=1000", ["evaluation.stride=1000", "data.seq_length=128"]),
        ("training=3", ["training=3", "mapping"]),
        ("name=a/b", ["name='a/b'", "pattern"]),
        ("no-equals-sign", ["no-equals-sign", "section.key=value"]),
        ("seed.deeper=3", ["seed.deeper=3", "seed"]),
        ("seed=[", ["seed=[", "YAML"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key_the_value_and_the_rule(tmp_path, override, words):
    message = mistake(tmp_path, "seed: 1\ntraining: {max_steps: 10, warmup_steps: 1}\n", override)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_two_mistakes_are_two_lines(tmp_path):
    assert len(mistake(tmp_path, "seed: x\nnme: y\n").splitlines()) == 2


@pytest.mark.parametrize(
    ("content", "word"), [(b"a: [", "YAML"), (b"- 1\n", "mapping"), (b"\xff\xfe", "UTF-8"), (None, "No such file")]
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, content, word):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=word) as error:
        load_config(path, [])
    assert str(path) in str(error.value)
