"""What the arguments of several commands have in common."""

import argparse
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from textgen.inference.engine import Mode

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

MODEL_HELP = "a published or a training folder, NAME@champion or NAME@v3"
ROOT_HELP = "the storage root that has models/: a folder or an fsspec URL"


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Add the file of a configuration and the settings that are given over it."""
    parser.add_argument("--config", default="default", help="a YAML file, or the name of a shipped one (%(default)s)")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="a setting; `textgen config` shows them all"
    )


def add_mode(parser: argparse.ArgumentParser, compiled: bool) -> None:
    """Add how an engine works, by default compiled or not."""
    parser.add_argument("--past", choices=("slide", "stop"), default="slide", help="past the context: go on, or end")
    parser.add_argument(
        "--weights", choices=("fp32", "int8"), default="fp32", help="int8: faster where few texts are written at once"
    )
    parser.add_argument(
        "--deterministic", action="store_true", help="a text is the same to the last bit whatever else is written"
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=compiled,
        help="compile a step where that makes it faster; it takes some seconds",
    )


def read_mode(options: argparse.Namespace) -> "Mode":
    """Return how an engine is to work."""
    from textgen.inference.engine import Mode

    return Mode(options.past, options.weights, options.deterministic, options.compile)
