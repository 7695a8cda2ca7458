"""The configuration: defaults, precedence, and one line for each mistake."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from textgen.config import MAX_MISTAKES, Config, find_config, known_keys, load_config, parse_config
from textgen.errors import InputError
from textgen.terminal import printable

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
LONGEST_LINE = 1_000  # characters


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


@pytest.mark.parametrize(
    "override",
    [
        f"training.batch_size={'9' * 100_000}",
        f"seed={'[' * 100_000}",
        f"name={'x' * 40_000}",
        f"{'x' * 100_000}=1",
        f"{'a.' * 1_000}b=1",
        f"data={{{', '.join(f'k{n}: 1' for n in range(4_000))}}}",
        "\x1b[31m=1",
        "training.max_steps=1_000",
        "seed=2020-13-45",
        "training.seed=!!python/object:x y",
        'data.path="a\\0b"',
        'data.path="\\ud800"',
        "data.revision=2020-01-01T00:00:00Z=",
        "training.learning_rate=1e999",
        "training={<<: 3}",
        "seed={a: 1, a: 2}",
    ],
    ids=lambda override: override[:30],
)
def test_a_hostile_override_is_a_few_short_lines(override):
    try:
        load_config(None, [override])
    except InputError as error:
        lines = str(error).splitlines()
        assert len(lines) <= MAX_MISTAKES + 1
        assert all(len(line) < LONGEST_LINE and line == printable(line) for line in lines)
    else:
        assert "revision" in override


def test_a_number_that_the_machine_cannot_hold_is_refused_from_a_form_too():
    with pytest.raises(InputError, match="64 bits"):
        parse_config({"training": {"max_steps": 10**30}})


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "/dev/null/x"])
def test_a_file_that_cannot_be_looked_for_is_one_line(name):
    with pytest.raises(InputError, match="--config"):
        find_config(name)


def try_config(path: Path | None, overrides: list[str]) -> None:
    """Load a configuration; what is refused is a few short lines that do not act."""
    try:
        load_config(path, overrides)
    except InputError as error:
        lines = str(error).splitlines()
        assert 0 < len(lines) <= MAX_MISTAKES + 1
        assert all(len(line) < LONGEST_LINE for line in lines)


EXAMPLES = settings(max_examples=100, derandomize=True, deadline=None, database=None)
PIECES = [*"ab10.-+_:,[]{}&*!?|>%@#'\"\\\n \t~=<xU", "é", "\x1b", "!!int ", "<<: ", "\n  ", "training: ", "&a ", "*a"]
YAML_TEXT = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | YAML_TEXT | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(known_keys()) | st.text(max_size=20)


@EXAMPLES
@given(st.text() | YAML_TEXT | st.dictionaries(KEYS, VALUES).map(lambda value: yaml.safe_dump(value)))
def test_any_text_is_a_configuration_or_a_mistake(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "config.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    try_config(path, [])


@EXAMPLES
@given(st.lists(st.text() | st.builds("{}={}".format, KEYS, st.text() | YAML_TEXT | VALUES.map(str)), max_size=3))
def test_any_override_is_a_configuration_or_a_mistake(overrides):
    try_config(None, overrides)


@EXAMPLES
@given(st.dictionaries(st.sampled_from(list(Config.model_fields)), VALUES | st.dictionaries(KEYS, VALUES)))
def test_any_values_of_a_form_are_a_configuration_or_a_mistake(values):
    try:
        parse_config(values)
    except InputError as error:
        assert all(len(line) < LONGEST_LINE for line in str(error).splitlines())


@pytest.mark.parametrize(
    "name",
    ["*.txt", "[draft] notes.txt", "{a}.md", "C# notes #1.txt", "&x", "@x", "%x", "!x", "2024", "2024-01-02", "1_000",
     "true", "notes: mine", "- a", "? a", "x[[]ab].txt", "a b", "1e5"],
)  # fmt: skip
def test_the_name_of_a_file_is_taken_as_it_is_typed(name):
    assert load_config(None, [f"data.files={name}"]).data.files == name
    splits = [f"data.files.test={name}", "data.files.train=a", "data.files.validation=b"]
    assert load_config(None, splits).data.files == {"train": "a", "validation": "b", "test": name}
    assert load_config(None, [f"storage.root={name}"]).storage.root == name


def test_lists_quotes_and_null_of_an_override_are_yaml():
    assert load_config(None, ["data.files=[a, 'b c']"]).data.files == ["a", "b c"]
    assert load_config(None, ["data.files='*.md'"]).data.files == "*.md"
    assert load_config(None, ['data.document="\\n\\n"']).data.document == "\n\n"
    assert load_config(None, ["data.files=null"]).data.files is None


@pytest.mark.parametrize(
    "override",
    ["data.files=", "data.files.train=", "data.document=", "training.epochs=", "training.epochs= #", "seed= ", "data="],
)
def test_an_override_without_a_value_is_a_mistake(override):
    """An unset variable, `data.files=$NOTES`, trained on the default text."""
    with pytest.raises(InputError, match="no value stands after `=`") as caught:
        load_config(None, [override])
    assert "\n" not in str(caught.value)


def test_a_tilde_of_an_override_is_text():
    assert load_config(None, ["data.files=~"]).data.files == "~"
    assert load_config(None, ["data.files=[~, ~/notes]"]).data.files == ["~", "~/notes"]
    with pytest.raises(InputError, match=r"training\.max_steps='~'"):
        load_config(None, ["training.max_steps=~"])


def test_the_home_of_nobody_is_a_name_as_any_other():
    assert load_config(None, ["storage.root=~no-such-user/data"]).root == Path("~no-such-user/data")


@pytest.mark.parametrize("files", ["3", "[]", "[1]", "{train: a, dev: b}", "{train: {a: b}}", "{}", "''"])
def test_what_names_no_files_is_one_line(files, tmp_path):
    (tmp_path / "config.yaml").write_text(f"data: {{files: {files}}}")
    with pytest.raises(InputError, match=r"^data\.files=") as caught:
        load_config(tmp_path / "config.yaml", [])
    assert "\n" not in str(caught.value)
