"""Every key of the configuration as a person reads it: meaning, bounds, default, value, and where the value is from."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from textgen.config import Config, parse_config, read_values, sections
from textgen.sections import Section
from textgen.terminal import counted

DEFAULT, COMMAND_LINE, OTHER_KEYS = "default", "command line", "other keys"  # of a value, beside its file
TOP_LEVEL = ""  # the section of the keys that are in none
NOUNS = {"integer": "integer", "number": "number", "string": "text", "array": "a list", "object": "a mapping"}
LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}  # of JSON Schema


@dataclass(frozen=True)
class Setting:
    """A key of the configuration, with its value in one."""

    key: str  # as `training.batch_size`
    meaning: str
    bounds: str
    default: Any
    value: Any
    stands_for: Any  # what a null is taken for, None where that is nothing or is known only with the text
    origin: str  # DEFAULT, COMMAND_LINE, OTHER_KEYS or the path of the file

    @property
    def section(self) -> str:
        """The section of the key, TOP_LEVEL where it is in none."""
        return self.key.rpartition(".")[0]

    @property
    def differs(self) -> bool:
        """Whether the value is another one than the default."""
        return bool(self.value != self.default)


def kinds() -> dict[str, type[Section]]:
    """Return the sections by name, in order; the first is TOP_LEVEL."""
    return {TOP_LEVEL: Config, **sections()}


@cache
def properties(kind: type[Section]) -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of each key of a section."""
    found: dict[str, dict[str, Any]] = kind.model_json_schema()["properties"]
    return found


def list_settings(path: Path | None, overrides: list[str]) -> list[Setting]:
    """Return every key of the configuration that the file at `path` and the overrides make, in order.

    Raises:
        InputError: a line a mistake, each naming the key, the value and the rule.
    """
    values = read_values(path, overrides)
    config = parse_config(values)
    typed = [override.partition("=")[0] for override in overrides]
    settings = []
    for section, kind in kinds().items():
        made, given = (getattr(config, section), values.get(section, {})) if section else (config, values)
        shown, defaults = made.model_dump(mode="json"), kind().model_dump(mode="json")
        for name, schema in properties(kind).items():
            if section == TOP_LEVEL and name in sections():
                continue
            key = f"{section}.{name}" if section else name
            if name not in given:
                origin = DEFAULT if shown[name] == defaults[name] else OTHER_KEYS
            elif any(one in (section, key) or one.startswith(f"{key}.") for one in typed):
                origin = COMMAND_LINE
            else:
                origin = str(path)
            stands_for = getattr(made, f"resolved_{name}", None) if shown[name] is None else None
            meaning, bounds = schema["description"], bounds_in_words(schema)
            settings.append(Setting(key, meaning, bounds, defaults[name], shown[name], stands_for, origin))
    return settings


def default_values() -> dict[str, Any]:
    """Return the value of each key that nobody sets."""
    return flat(Config().model_dump(mode="json"))


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration, which may be an older one, by their keys."""
    values: dict[str, Any] = {}
    for name, section in config.items():
        if isinstance(section, dict):
            values |= {f"{name}.{key}": value for key, value in section.items()}
        else:
            values[name] = section
    return values


def bounds_in_words(schema: dict[str, Any]) -> str:
    """Return what values a JSON Schema allows, as `integer >= 1 or null`."""
    *others, last = _alternatives(schema)
    return f"{', '.join(others)} or {last}" if others else last


def _alternatives(schema: dict[str, Any]) -> Iterator[str]:
    if "anyOf" in schema:
        for part in schema["anyOf"]:
            yield from _alternatives(part)
    elif "enum" in schema or "const" in schema:
        yield from schema.get("enum") or [schema["const"]]
    elif schema["type"] == "boolean":
        yield from ("true", "false")
    elif schema["type"] == "null":
        yield "null"
    else:
        yield f"{NOUNS[schema['type']]}{' and'.join(_limits(schema))}"


def _limits(schema: dict[str, Any]) -> Iterator[str]:
    for name, sign in LIMITS.items():
        if name in schema:
            yield f" {sign} {schema[name]:,}"
    if "pattern" in schema:
        yield f" that matches {schema['pattern']}"
    if "minLength" in schema:
        yield f" of at least {counted(schema['minLength'], 'character')}"
    if "maxLength" in schema:
        yield f" of at most {counted(schema['maxLength'], 'character')}"


def as_typed(value: Any) -> str:
    """Return a value as one types it after `section.key=`."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    is_plain = value.isprintable() and value == value.strip() and value[:1] not in ("", "'", '"', "[", "{")
    return value if is_plain and value != "null" else json.dumps(value, ensure_ascii=not value.isprintable())
