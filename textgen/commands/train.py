"""`textgen train`: a training on tokens that are there."""

import argparse

from textgen.commands.arguments import Commands
from textgen.config import find_config, load_config
from textgen.errors import InputError
from textgen.files import expand_home
from textgen.terminal import say


def add_train(commands: Commands) -> None:
    """Add `train` to the commands."""
    parser = commands.add_parser("train", help="train a model on tokens that are there")
    parser.add_argument("--config", required=True, help="a YAML file, or the name of a shipped one")
    parser.add_argument("--tokens", type=expand_home, required=True, help="a folder of data/processed")
    parser.add_argument(
        "--out", type=expand_home, required=True, help="the training folder; one that is there is continued"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    printed = parser.add_mutually_exclusive_group()
    printed.add_argument("--json", action="store_true", help="print the checkpoint's manifest")
    printed.add_argument("--quiet", action="store_true", help="print no result")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from textgen.text.tokens import TokensManifest
    from textgen.training.group import is_main_process, report_failures
    from textgen.training.train import train

    config = load_config(find_config(options.config), options.overrides)
    if not options.tokens.is_dir():
        raise InputError(f"--tokens {options.tokens}: there is no such folder")
    manifest = report_failures(train)(
        TokensManifest.read(options.tokens), config, options.out, on_metrics=lambda step, metrics: None
    )
    if options.quiet or not is_main_process():
        return
    best = next(point for point in manifest.curve if point.step == manifest.best_step)
    say(
        manifest.model_dump_json(indent=2)
        if options.json
        else f"{manifest.path}: best at step {best.step} of {manifest.steps}, {best.loss_nats:.4f} nats on validation"
    )
