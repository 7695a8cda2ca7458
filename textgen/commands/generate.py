"""`textgen generate`: a prompt is continued."""

import argparse

from pydantic import ValidationError

from textgen.commands.arguments import MODEL_HELP, ROOT_HELP, Commands
from textgen.config import StorageConfig
from textgen.errors import InputError
from textgen.terminal import say


def add_generate(commands: Commands) -> None:
    """Add `generate` to the commands."""
    parser = commands.add_parser("generate", help="continue a prompt")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--max-tokens", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token")
    parser.add_argument("--top-k", type=int, default=0, help="draw from the K likeliest tokens; 0: from all")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the fewest tokens of probability P")
    parser.add_argument(
        "--min-p", type=float, default=0.0, help="draw from tokens at least P times as likely as the first"
    )
    parser.add_argument("--seed", type=int, help="the same seed draws the same text")
    parser.add_argument("--root", default=StorageConfig().root, help=ROOT_HELP)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from textgen.inference.generate import SamplingConfig, generate
    from textgen.model.find import resolve
    from textgen.model.pretrained import load_finite_model
    from textgen.storage import Storage

    try:
        sampling = SamplingConfig(**{name: getattr(options, name) for name in SamplingConfig.model_fields})
    except ValidationError as error:
        details = error.errors()[0]
        flag = str(details["loc"][0]).replace("_", "-")
        raise InputError(f"--{flag} {details['input']}: {details['msg']}") from None
    if not options.prompt.isascii() and any("\ud800" <= character <= "\udfff" for character in options.prompt):
        raise InputError("--prompt: it has bytes that are not UTF-8")
    loaded = load_finite_model(resolve(options.model, Storage.at(options.root)))
    say(options.prompt + generate(loaded, options.prompt, sampling))
