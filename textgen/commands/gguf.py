"""`textgen gguf`: a model as llama.cpp runs it."""

import argparse
import logging

from textgen.commands.arguments import MODEL_HELP, ROOT_HELP, Commands
from textgen.config import StorageConfig
from textgen.files import expand_home
from textgen.terminal import say


def add_gguf(commands: Commands) -> None:
    """Add `gguf` to the commands."""
    parser = commands.add_parser("gguf", help="write a model as llama.cpp runs it")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("out", metavar="OUT.gguf", type=expand_home, help="the file; one that is there is replaced")
    parser.add_argument("--root", default=StorageConfig().root, help=ROOT_HELP)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from textgen.model.find import resolve
    from textgen.model.gguf import write_gguf
    from textgen.model.pretrained import load_finite_model
    from textgen.storage import Storage

    logging.getLogger("gguf").setLevel(logging.WARNING)  # it names the temporary file
    write_gguf(load_finite_model(resolve(options.model, Storage.at(options.root))), options.out)
    say(str(options.out))
