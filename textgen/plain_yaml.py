"""YAML as a configuration needs it: small, shallow, with text as its keys, no tags, and numbers as in YAML 1.2."""

import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from textgen.terminal import brief, one_line

MAX_CHARACTERS = 50_000
MAX_DEPTH = 20  # levels of nesting; a configuration has four
MAX_VALUES = 10_000  # with every alias written out
YAML_TAG = "tag:yaml.org,2002:"
MERGE = f"{YAML_TAG}merge"
MERGED = (yaml.MappingNode, yaml.SequenceNode)


class NotPlain(ValueError):
    """The text is not YAML that a configuration may be: the message names the place and the rule."""


class _Loader(yaml.SafeLoader):
    """Numbers are those of YAML 1.2: `1e-3` is one; `1_000`, `1:30` and dates are text, and `010` is ten."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  the base class's

    def __init__(self, text: str, tilde_is_null: bool) -> None:
        super().__init__(text)
        if not tilde_is_null:
            self.yaml_implicit_resolvers = {**self.yaml_implicit_resolvers, "~": []}
        self.depth, self.values = 0, 0
        self.values_below: dict[Node, int] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose a node, unless the whole is too deep, too large with its aliases written out, or endless."""
        event, before = self.peek_event(), self.values
        place = event.start_mark
        if (tag := getattr(event, "tag", None)) is not None:
            raise _refusal(
                place, f"the tag {brief(tag.replace(YAML_TAG, '!!'))} has no meaning here; write the value alone"
            )
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _refusal(place, f"more than {MAX_DEPTH} levels of nesting")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is None:
            return None
        if isinstance(event, yaml.AliasEvent):
            if node not in self.values_below:
                raise _refusal(place, f"the alias {brief(event.anchor)} stands inside of what it names")
            self.values += self.values_below[node]
        else:
            self.values += 1
            self.values_below[node] = self.values - before
        if self.values > MAX_VALUES:
            raise _refusal(place, f"more than {MAX_VALUES:,} values, with aliases written out")
        return node

    def construct_mapping(self, node: Node, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping whose keys are text, as it is written, and differ."""
        if not isinstance(node, MappingNode):
            raise _refusal(node.start_mark, "a mapping was expected")
        there: set[str] = set()
        for key, value in node.value:
            if key.tag == MERGE and not isinstance(value, MERGED):
                raise _refusal(value.start_mark, "`<<` takes a mapping or a list of mappings")
            if (text := _key(key)) in there:
                raise _refusal(key.start_mark, f"the key {brief(text)} is there twice")
            there.add(text)
        self.flatten_mapping(node)
        return {_key(key): self.construct_object(value, deep=True) for key, value in node.value}

    def construct_number(self, node: ScalarNode) -> int | float:
        """Construct a number that 64 bits hold."""
        text = node.value.lower()
        if (special := re.fullmatch(r"([-+]?)\.(inf|nan)", text)) is not None:
            return float(special[1] + special[2])
        if node.tag.endswith(":float"):
            return float(text)
        base = {"0x": 16, "0o": 8}.get(text[:2], 10)
        digits = text[2:] if base != 10 else text
        if len(digits.lstrip("+-0")) > 20 or not -(2**63) <= (number := int(digits or "0", base)) < 2**63:
            raise _refusal(node.start_mark, f"{brief(node.value)} is more than 64 bits hold")
        return number


def _key(node: Node) -> str:
    if not isinstance(node, ScalarNode):
        raise _refusal(node.start_mark, "a key is text, not a list or a mapping")
    return str(node.value)


def _refusal(place: yaml.Mark | None, rule: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=rule, problem_mark=place)


def _construct_mapping(loader: _Loader, node: Node) -> dict[Any, Any]:
    return loader.construct_mapping(node)


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(YAML_TAG + tag, re.compile(f"^(?:{pattern})$"), list(first))


_resolve("bool", "yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO")
_resolve("int", "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789")
_resolve(
    "float",
    r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "-+.0123456789",
)
_resolve("merge", "<<", "<")
_resolve("null", "~|null|Null|NULL|", "~nN")
_Loader.yaml_implicit_resolvers.setdefault("", []).append((f"{YAML_TAG}null", re.compile("^$")))
for kind in ("int", "float"):
    _Loader.add_constructor(YAML_TAG + kind, _Loader.construct_number)
_Loader.add_constructor(f"{YAML_TAG}map", _construct_mapping)
_Loader.add_constructor(MERGE, lambda loader, node: node.value)  # `<<` where it is no key


def read_yaml(text: str, tilde_is_null: bool = True) -> Any:
    """Return the value of a YAML text; `~` is text where it is not to be null.

    Raises:
        NotPlain: it is not YAML, or not as a configuration may be.
    """
    if len(text) > MAX_CHARACTERS:
        raise NotPlain(f"more than {MAX_CHARACTERS:,} characters")
    try:
        loader = _Loader(text, tilde_is_null)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        where = f"line {place.line + 1}, column {place.column + 1}: " if place is not None else ""
        raise NotPlain(where + one_line(", ".join(part for part in (error.context, error.problem) if part))) from None
    except yaml.reader.ReaderError as error:
        raise NotPlain(f"character {error.position + 1} may not be in YAML") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML lets int() and chr() raise for an escape
        raise NotPlain(one_line(error)) from None
