"""Own a small language model: train it, measure it, write with it, and keep its versions."""

import argparse
import logging
import sys
from collections.abc import Sequence

from textgen import __version__
from textgen.bar import Console
from textgen.commands.clean import add_clean
from textgen.commands.config import add_config
from textgen.commands.data import add_data
from textgen.commands.evaluate import add_evaluate
from textgen.commands.generate import add_generate
from textgen.commands.gguf import add_gguf
from textgen.commands.models import add_models
from textgen.commands.runs import add_runs
from textgen.commands.serve import add_serve
from textgen.commands.train import add_train
from textgen.errors import carry_out


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    logging.basicConfig(level=logging.INFO, handlers=[Console()])
    parser = argparse.ArgumentParser(prog="textgen", description=__doc__)
    parser.add_argument("--version", action="version", version=f"textgen {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for add in (
        add_train, add_evaluate, add_generate, add_serve, add_gguf, add_models, add_runs, add_data, add_config,
        add_clean,
    ):  # fmt: skip
        add(commands)
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(argument.startswith("-") for argument in rest)):
        hint = "; for another root write storage.root=ROOT" if any(one.startswith("--root") for one in rest) else ""
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    if rest:  # overrides after an option that stands between them
        options.overrides += rest
    return carry_out(lambda: options.run(options))


if __name__ == "__main__":
    sys.exit(main())
