"""What the benchmarks share: seed, command and machine, files of figures, and scores as the flow has them."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from textgen.config import Config
from textgen.cores import usable_cores
from textgen.errors import carry_out
from textgen.evaluation.protocols import read_tokens_split
from textgen.evaluation.scoring import measure
from textgen.files import write_atomic
from textgen.model.device import autocast, device_name, has_amx
from textgen.model.loss import device_of
from textgen.model.transformer import LanguageModel
from textgen.storage import Storage
from textgen.text.corpus import fetch
from textgen.text.tokens import TokensManifest, tokenize

SEED = 1234


def write_report(report: dict[str, Any], path: Path | None) -> None:
    """Print a benchmark's figures as JSON, and write them to `path` if there is one."""
    text = json.dumps(report, indent=2)
    print(text)
    if path is not None:
        path.write_text(text + "\n")


def command_line() -> str:
    """Return the command that runs, as it is typed again."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def hardware(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor with its cores and whether they multiply in bf16 (AMX)."""
    name = device_name(device)
    if device.type == "cuda":
        return name
    return f"{name}, {usable_cores()} cores{', AMX' if has_amx() else ''}"


def rows_file(name: str) -> Path:
    """Check the path of a file of rows, which need not exist yet, so that a mistake shows before hours of training.

    Raises:
        ArgumentTypeError: it cannot be written, or holds something else.
    """
    path = Path(name)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"{name}: not a file in a folder that is there")
    try:
        rows = json.loads(path.read_text()) if path.exists() else []
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{name}: not JSON: {error}") from error
    if not isinstance(rows, list):
        raise argparse.ArgumentTypeError(f"{name}: not a list of rows")
    return path


def row_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a command that adds a row to a file."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a YAML file, or the name of a shipped one")
    parser.add_argument("--json", type=rows_file, required=True, help="the file that gets one row more")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser


def run_and_exit(command: Callable[[], None]) -> NoReturn:
    """Run a command that adds a row, and exit as `textgen` does; Ctrl-C leaves nothing that could be continued."""
    sys.exit(carry_out(command, interrupted="no row was added"))


def tokens_of(config: Config) -> TokensManifest:
    """Return the tokens of a configuration, made where they are not there yet."""
    storage = Storage(config.storage)
    return tokenize(fetch(config.data, storage), config.tokenizer, storage, config.data.end_of_document)


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a file of rows, and print it."""
    rows = json.loads(path.read_text()) if path.exists() else []
    write_atomic(path, json.dumps([*rows, row], indent=2) + "\n")
    print(json.dumps(row))


def score_split(model: LanguageModel, tokens: TokensManifest, split: str, config: Config) -> dict[str, Any]:
    """Return the figures of a split by the `sliding` protocol, in the precision of the training as the flow has it."""
    text = read_tokens_split(tokens, split, "sliding", config.data.seq_length, config.stride)
    with autocast(device_of(model), config.training.precision):
        return measure(model, text, config.evaluation.batch_size).metrics.model_dump(mode="json")
