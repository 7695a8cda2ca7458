"""The form of a run: what people choose in the Prefect UI, and the configuration that it makes."""

import re
import textwrap
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer
from pydantic.json_schema import SkipJsonSchema

from tasks.redact import redact
from textgen.config import Config, find_config, known_keys, load_config, shipped_configs
from textgen.errors import InputError
from textgen.files import content_key
from textgen.settings import Setting, as_typed, list_settings, properties

NAME_LENGTH = 48  # the narrowest list of the UI cuts a name a little later
WORD_LENGTH, VALUE_LENGTH = 28, 12
PLACES = ("storage.", "tracking.", "compute.")

NULL = " null: "  # in the meaning of a key, before what a null stands for
NAME = properties(Config)["name"]

T = TypeVar("T")

Chosen: TypeAlias = T | SkipJsonSchema[None]  # in the form a field that may be left empty, not a choice of types

# The API knows the files that were there at `prefect deploy`; a command may name any other.
ConfigName = Annotated[str, Field(json_schema_extra={"enum": list(shipped_configs())})]
# The API checks an override's key; its value is checked when the run begins.
Override = Annotated[str, Field(pattern=rf"^({'|'.join(map(re.escape, known_keys()))}|data\.files\.[a-z]+)=.*$")]


class Choices(BaseModel):
    """A group of the form. What is left empty is absent, as the form leaves it out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_serializer(mode="wrap")
    def without_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}


def field(position: int, title: str, description: str, default: Any = None) -> Any:
    """Return a field of a group, at its place in the form."""

    def place(schema: dict[str, Any]) -> None:
        schema["position"] = position
        if default is None:  # which the form would send back, and refuse
            del schema["default"]

    return Field(default, title=title, description=description, json_schema_extra=place)


def setting(position: int, title: str, key: str) -> Any:
    """Return a field for a key of the configuration, which may be left empty."""
    return field(position, title, describe(key))


def describe(key: str) -> str:
    """Return what a key of the configuration means, and its value in each that is shipped."""
    found = {name: settings[key] for name, settings in shipped_settings().items()}
    with_value: dict[str, list[str]] = {}
    for name, one in found.items():
        with_value.setdefault(_value(one), []).append(name)
    meaning, _, _ = next(iter(found.values())).meaning.partition(NULL)
    if len(with_value) == 1:
        return f"{meaning} Left empty: {next(iter(with_value))}."
    values = [f"{value} in {' and '.join(names)}" for value, names in with_value.items()]
    return f"{meaning} Left empty: {'; '.join(values)}."


def _value(one: Setting) -> str:
    """Return the value of a key in words."""
    return as_typed(one.value) if one.value is not None else one.meaning.partition(NULL)[2].removesuffix(".") or "none"


@cache
def shipped_settings() -> dict[str, dict[str, Setting]]:
    """Return the settings of each shipped configuration by key; one with a mistake is left out."""
    found = {}
    for name, path in shipped_configs().items():
        with suppress(InputError):
            found[name] = {one.key: one for one in list_settings(path, [])}
    return found


class DataChoices(Choices):
    """The text to train on: one source. What is left empty is as in the configuration."""

    files: Chosen[str] = setting(0, "Files", "data.files")
    path: Chosen[str] = setting(1, "Folder in Hub layout", "data.path")
    dataset_name: Chosen[str] = setting(2, "Dataset", "data.dataset_name")
    dataset_config: Chosen[str] = setting(3, "Configuration of the dataset", "data.dataset_config")

    def overrides(self) -> list[str]:
        """Return the choices as overrides of the configuration; a source takes the place of the one that it has.

        Raises:
            InputError: more than one source is chosen.
        """
        chosen = {name: value for name, value in self if value is not None}
        sources = [name for name in ("files", "path", "dataset_name") if name in chosen]
        if len(sources) > 1:
            raise InputError(f"data: {' and '.join(sources)} are both chosen; choose one source")
        others = dict.fromkeys(("files", "path", "dataset_config"), "null") if sources else {}
        return [f"data.{name}={value}" for name, value in {**others, **chosen}.items()]


class TrainingChoices(Choices):
    """How to train. What is left empty is as in the configuration."""

    steps: Chosen[Annotated[int, Field(ge=1)]] = setting(0, "Steps", "training.max_steps")
    learning_rate: Chosen[Annotated[float, Field(gt=0, le=1)]] = setting(1, "Learning rate", "training.learning_rate")
    warmup_steps: Chosen[Annotated[int, Field(ge=0)]] = setting(2, "Warm-up steps", "training.warmup_steps")
    batch_size: Chosen[Annotated[int, Field(ge=1)]] = setting(3, "Batch size", "training.batch_size")
    seed: Chosen[Annotated[int, Field(ge=0, lt=2**32)]] = setting(4, "Seed", "seed")

    def overrides(self) -> list[str]:
        """Return the choices as overrides of the configuration."""
        values = {
            "training.max_steps": self.steps,
            "training.learning_rate": self.learning_rate,
            "training.warmup_steps": self.warmup_steps,
            "training.batch_size": self.batch_size,
            "seed": self.seed,
        }
        chosen = [f"{key}={value}" for key, value in values.items() if value is not None]
        return [*chosen, "training.epochs=null"] if self.steps is not None else chosen


class RunChoices(Choices):
    """What to do, and where."""

    name: Chosen[Annotated[str, Field(pattern=NAME["pattern"], max_length=NAME["maxLength"])]] = setting(
        0, "Model name", "name"
    )
    force: bool = field(
        1, "Train again", "Train although data, settings and code are those of a model that is there.", False
    )
    refresh: bool = field(
        2, "Look for new data", "Ask the Hub for the newest commit, not for the one that was fetched first.", False
    )
    promote: Chosen[Literal["gate", "always", "never"]] = setting(3, "Promote", "publish.policy")
    gpu_deployment: Chosen[Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")]] = setting(
        4, "GPU deployment", "compute.gpu_deployment"
    )

    def overrides(self) -> list[str]:
        """Return the choices that are settings as overrides of the configuration."""
        values = {"name": self.name, "publish.policy": self.promote, "compute.gpu_deployment": self.gpu_deployment}
        return [f"{key}={value}" for key, value in values.items() if value is not None]


def make_config(
    config: str,
    training: TrainingChoices,
    run: RunChoices,
    overrides: list[str],
    data: DataChoices = DataChoices(),  # noqa: B008  frozen
) -> Config:
    """Return the configuration that the form describes: the file < the choices < the overrides.

    Raises:
        InputError: a line a mistake, each naming the key, the value and the rule.
    """
    chosen = [*data.overrides(), *training.overrides(), *run.overrides()]
    return load_config(find_config(config), [*chosen, *overrides])


def run_name(parameters: dict[str, Any]) -> str:
    """Return a short name for a run with these parameters: the configuration and what differs from it.

    What says only where things are comes last. A name that was shortened ends with a hash of the whole one: it is no
    other run's.
    """
    chosen = [
        f"{name}={value}"
        for group in ("run", "training", "data")
        for name, value in dict(parameters.get(group) or {}).items()
        if value is not None and value is not False and name != "gpu_deployment"
    ]
    last = {override.partition("=")[0]: override for override in parameters.get("overrides") or []}  # which is used
    overrides = sorted(last.values(), key=lambda override: override.startswith(PLACES))
    whole = redact(" ".join([Path(parameters.get("config") or "default").stem, *chosen, *overrides]))
    short = " ".join(map(_short, whole.split()))
    if short == whole and len(whole) <= NAME_LENGTH:
        return whole
    mark = f" … {content_key(whole)[:4]}"
    return textwrap.shorten(short, NAME_LENGTH - len(mark), placeholder="") + mark


def _short(word: str) -> str:
    """Return `key=value` with the end of a long value alone."""
    key, equals, value = word.partition("=")
    return word if len(word) <= WORD_LENGTH else f"{key}{equals}…{value[-VALUE_LENGTH:]}"
