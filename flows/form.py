"""The form of a run: what people choose in the Prefect UI, and the configuration that it makes."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from textgen.config import Config, Section, load_config

CONFIGS = Path(__file__).parents[1] / "configs"


def known_keys() -> list[str]:
    """Return every key of the configuration, as `section.key`."""
    keys = []
    for name, field in Config.model_fields.items():
        is_section = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        keys += [f"{name}.{key}" for key in field.annotation.model_fields] if is_section else [name]
    return keys


# The API knows the files that were there at `prefect deploy`; a command may name any other.
ConfigName = Annotated[
    str,
    Field(
        title="Configuration",
        description="a file of configs/",
        json_schema_extra={"position": 0, "enum": sorted(path.stem for path in CONFIGS.glob("*.yaml"))},
    ),
]
Override = Annotated[str, Field(pattern=rf"^({'|'.join(map(re.escape, known_keys()))})(\.[a-z]+)?=.*$")]
Overrides = Annotated[
    list[Override],
    Field(
        title="Other settings",
        description="section.key=value, one a line, over everything above; README.md lists the keys",
        json_schema_extra={"position": 3},
    ),
]


class Choices(BaseModel):
    """A group of the form."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainingChoices(Choices):
    """How to train. What is left empty is as in the configuration."""

    steps: int | None = Field(
        None, ge=1, title="Steps", description="optimizer steps", json_schema_extra={"position": 0}
    )
    learning_rate: float | None = Field(
        None, gt=0, le=1, title="Learning rate", description="at its peak", json_schema_extra={"position": 1}
    )
    batch_size: int | None = Field(
        None, ge=1, title="Batch size", description="sequences in a forward pass", json_schema_extra={"position": 2}
    )
    seed: int | None = Field(
        None, ge=0, lt=2**32, title="Seed", description="of everything random", json_schema_extra={"position": 3}
    )

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

    force: bool = Field(
        False,
        title="Train again",
        description="though data, configuration and code are those of a model that is there",
        json_schema_extra={"position": 0},
    )
    refresh: bool = Field(
        False,
        title="Look for new data",
        description="ask the Hugging Face Hub for the newest commit, not the one that was fetched first",
        json_schema_extra={"position": 1},
    )
    promote: Literal["gate", "always", "never"] | None = Field(
        None,
        title="Promote",
        description="gate: if it is better than the champion",
        json_schema_extra={"position": 2},
    )
    gpu_deployment: str | None = Field(
        None,
        pattern=r"^[^/]+/[^/]+$",
        title="GPU deployment",
        description="that trains, as train-model/gpu; empty: this run's own process does",
        json_schema_extra={"position": 3},
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
    named = CONFIGS / f"{config}.yaml"
    path = named if named.is_file() else Path(config)
    return load_config(path, [*training.overrides(), *run.overrides(), *overrides])


def describe(parameters: dict[str, Any]) -> str:
    """Return a short name for a run with these parameters: the configuration and what differs from it."""
    groups = [parameters.get("training") or {}, parameters.get("run") or {}]
    values = [dict(group) for group in groups]
    chosen = [f"{name}={value}" for group in values for name, value in group.items() if value not in (None, False)]
    chosen = [choice for choice in chosen if not choice.startswith("gpu_deployment")]
    return " ".join([Path(parameters.get("config") or "default").stem, *chosen, *(parameters.get("overrides") or [])])
