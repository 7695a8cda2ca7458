"""The form of a run: what people choose in the Prefect UI, and the configuration that it makes."""

import re
import textwrap
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer
from pydantic.json_schema import SkipJsonSchema

from tasks.redact import redact
from textgen.config import Config, find_config, known_keys, load_config, shipped_configs

NAME_LENGTH = 80

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


class TrainingChoices(Choices):
    """How to train. What is left empty is as in the configuration."""

    steps: Chosen[Annotated[int, Field(ge=1)]] = field(0, "Steps", "optimizer steps")
    learning_rate: Chosen[Annotated[float, Field(gt=0, le=1)]] = field(1, "Learning rate", "at its peak")
    batch_size: Chosen[Annotated[int, Field(ge=1)]] = field(2, "Batch size", "sequences in a forward pass")
    seed: Chosen[Annotated[int, Field(ge=0, lt=2**32)]] = field(3, "Seed", "the same seed and data give the same model")

    def overrides(self) -> list[str]:
        """Return the choices as overrides of the configuration."""
        values = {
            "training.max_steps": self.steps,
            "training.learning_rate": self.learning_rate,
            "training.batch_size": self.batch_size,
            "seed": self.seed,
        }
        chosen = [f"{key}={value}" for key, value in values.items() if value is not None]
        return [*chosen, "training.epochs=null"] if self.steps is not None else chosen


class RunChoices(Choices):
    """What to do, and where."""

    force: bool = field(0, "Train again", "though data, configuration and code are those of a model there is", False)
    refresh: bool = field(
        1, "Look for new data", "ask the Hub for the newest commit, in place of the one that was fetched first", False
    )
    promote: Chosen[Literal["gate", "always", "never"]] = field(
        2, "Promote", "gate: if it is better than the champion; empty: as in the configuration"
    )
    gpu_deployment: Chosen[Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")]] = field(
        3, "GPU deployment", "that trains, as train-model/gpu; empty: this run's own process does"
    )

    def overrides(self) -> list[str]:
        """Return the choices that are settings as overrides of the configuration."""
        values = {"publish.policy": self.promote, "compute.gpu_deployment": self.gpu_deployment}
        return [f"{key}={value}" for key, value in values.items() if value is not None]


def make_config(config: str, training: TrainingChoices, run: RunChoices, overrides: list[str]) -> Config:
    """Return the configuration that the form describes: the file < the choices < the overrides.

    Raises:
        InputError: a line a mistake, each naming the key, the value and the rule.
    """
    return load_config(find_config(config), [*training.overrides(), *run.overrides(), *overrides])


def run_name(parameters: dict[str, Any]) -> str:
    """Return a short name for a run with these parameters: the configuration and what differs from it."""
    chosen = [
        f"{name}={value}"
        for group in ("training", "run")
        for name, value in dict(parameters.get(group) or {}).items()
        if value is not None and value is not False and name != "gpu_deployment"
    ]
    words = [Path(parameters.get("config") or "default").stem, *chosen, *(parameters.get("overrides") or [])]
    return textwrap.shorten(redact(" ".join(words)), NAME_LENGTH, placeholder=" …")
