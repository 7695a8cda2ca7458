"""YAML of a configuration: what it may not be is refused at once, in a short line that names the place."""

import math

import pytest

from textgen.plain_yaml import MAX_CHARACTERS, MAX_DEPTH, MAX_VALUES, NotPlain, read_yaml

LONGEST_MESSAGE = 500
BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
)
MERGE_BOMB = "\n".join(
    ["a0: &a0 {x: 1, y: 2, z: 3}"] + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 9)]
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, f"more than {MAX_VALUES:,} values"),
        (MERGE_BOMB, f"more than {MAX_VALUES:,} values"),
        ("[" * 40_000, f"more than {MAX_DEPTH} levels"),
        ("{a: " * 9_000, f"more than {MAX_DEPTH} levels"),
        ("- " * 20_000, f"more than {MAX_DEPTH} levels"),
        ("x" * (MAX_CHARACTERS + 1), "characters"),
        ("a: &a [1, *a]", "line 1, column 11: the alias 'a' stands inside of what it names"),
        ("a: *nothing", "undefined alias"),
        (
            "b: 1\na: !!python/object/apply:os.system [ls]",
            "line 2, column 4: the tag '!!python/object/apply:os.system'",
        ),
        ("!!int x", "the tag '!!int' has no meaning"),
        ("!!binary '='", "the tag '!!binary' has no meaning"),
        ("!!timestamp x", "the tag '!!timestamp' has no meaning"),
        (f"!{'x' * 40_000} a", "has no meaning"),
        ("a: 1\n<<: 3", "line 2, column 5: `<<` takes a mapping"),
        ("<<: [3]", "expected a mapping for merging"),
        ("a: 1\na: 2", "line 2, column 1: the key 'a' is there twice"),
        ("? [1]\n: 2", "a key is text"),
        ("? {a: 1}\n: 2", "a key is text"),
        ("9223372036854775808", "64 bits"),
        ("9" * 5_000, "64 bits"),
        ("0x" + "f" * 5_000, "64 bits"),
        ('"\\U00110000"', "chr()"),
        (f"%YAML {'9' * 5_000}\n---\na", "digits"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a\x00b", "character 2 may not be in YAML"),
        ("a: [\x1b", "may not be in YAML"),
    ],
    ids=lambda text: text[:30],
)
def test_what_is_not_plain_is_one_short_line(text, words):
    with pytest.raises(NotPlain) as refusal:
        read_yaml(text)
    message = str(refusal.value)
    assert words in message
    assert "\n" not in message
    assert len(message) < LONGEST_MESSAGE


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("a: yes", {"a": True}),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("010", 10),
        ("0o17", 15),
        ("-9223372036854775808", -(2**63)),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2020-13-45", "2020-13-45"),
        ("0x_", "0x_"),
        ("=", "="),
        ("a: <<", {"a": "<<"}),
        ("1: 2", {"1": 2}),
        ("a: &a {x: 1}\nb: {<<: *a, y: 2}", {"a": {"x": 1}, "b": {"x": 1, "y": 2}}),
    ],
)
def test_numbers_are_those_of_yaml_1_2_and_the_rest_is_text(text, value):
    assert read_yaml(text) == value
