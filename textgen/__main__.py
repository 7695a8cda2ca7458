"""The command line of the library: `python -m textgen train | evaluate | generate | gguf | models`."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from textgen.config import Config, EvaluationConfig, load_config
from textgen.errors import InputError, carry_out
from textgen.models import add_models

MODEL_HELP = "a published or a training folder, NAME@champion or NAME@v3"
ROOT_HELP = "the storage folder that has models/"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(prog="python -m textgen", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_train(commands)
    _add_evaluate(commands)
    _add_generate(commands)
    _add_gguf(commands)
    add_models(commands)
    options = parser.parse_args(arguments)
    return carry_out(lambda: options.run(options))


def _add_train(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("train", help="train a model on tokens that are there")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True, help="a folder of data/processed")
    parser.add_argument("--out", type=Path, required=True, help="the training folder; one that is there is continued")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    printed = parser.add_mutually_exclusive_group()
    printed.add_argument("--json", action="store_true", help="print the checkpoint's manifest")
    printed.add_argument("--quiet", action="store_true", help="print no result")
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    from textgen.text.tokens import TokensManifest
    from textgen.training.group import is_main_process, report_failures
    from textgen.training.train import train

    config = load_config(options.config, options.overrides)
    if not options.tokens.is_dir():
        raise InputError(f"--tokens {options.tokens}: there is no such folder")
    manifest = report_failures(train)(
        TokensManifest.read(options.tokens), config, options.out, on_metrics=lambda step, metrics: None
    )
    if options.quiet or not is_main_process():
        return
    best = next(point for point in manifest.curve if point.step == manifest.best_step)
    print(
        manifest.model_dump_json(indent=2)
        if options.json
        else f"{manifest.path}: best at step {best.step} of {manifest.steps}, {best.loss_nats:.4f} nats on validation"
    )


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("evaluate", help="measure a model's perplexity")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="in UTF-8, a row a line; else its own held-out splits"
    )
    parser.add_argument("--protocol", choices=["sliding", "blocks", "lm-eval"], default=Config().evaluation.protocol)
    parser.add_argument("--root", type=Path, default=Config().root, help=ROOT_HELP)
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from textgen.evaluation.evaluate import evaluate_splits, evaluate_text, read_tokens
    from textgen.evaluation.protocols import DEFINITIONS
    from textgen.model.device import choose_device
    from textgen.model.find import resolve
    from textgen.model.pretrained import load_model
    from textgen.publishing.version import published_stride

    folder = resolve(options.model, options.root)
    loaded = load_model(folder, choose_device("auto"))
    half = max(1, loaded.seq_length // 2)
    stride = (published_stride(folder) or half) if options.protocol == "sliding" else loaded.seq_length
    evaluation = EvaluationConfig(protocol=options.protocol, stride=stride)
    if options.text is not None:
        measured = {"text": evaluate_text(loaded, options.text, evaluation)}
    else:
        measured = evaluate_splits(loaded, read_tokens(folder, options.root), evaluation, stride)
    splits = {name: split.metrics for name, split in measured.items()}
    if options.json:
        measured_by = {"protocol": options.protocol, "seq_length": loaded.seq_length, "stride": stride}
        by_split = {name: metrics.model_dump(mode="json") for name, metrics in splits.items()}
        print(json.dumps({**by_split, **measured_by}, indent=2))
        return
    print(f"{options.protocol}: context {loaded.seq_length}, stride {stride}")
    for part, description in DEFINITIONS[options.protocol].model_dump().items():
        print(f"  {part:18} {description}")
    for name, metrics in splits.items():
        print(name)
        for figure, value in metrics.model_dump().items():
            print(f"  {figure:18} {'-' if value is None else value}")


def _add_generate(commands: argparse._SubParsersAction) -> None:
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
    parser.add_argument("--root", type=Path, default=Config().root, help=ROOT_HELP)
    parser.set_defaults(run=_generate)


def _generate(options: argparse.Namespace) -> None:
    from textgen.inference.generate import SamplingConfig, generate
    from textgen.model.find import resolve
    from textgen.model.pretrained import load_model

    try:
        sampling = SamplingConfig(**{name: getattr(options, name) for name in SamplingConfig.model_fields})
    except ValidationError as error:
        details = error.errors()[0]
        flag = str(details["loc"][0]).replace("_", "-")
        raise InputError(f"--{flag} {details['input']}: {details['msg']}") from None
    loaded = load_model(resolve(options.model, options.root))
    print(options.prompt + generate(loaded, options.prompt, sampling))


def _add_gguf(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("gguf", help="write a model as llama.cpp runs it")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("out", metavar="OUT.gguf", type=Path, help="the file; one that is there is replaced")
    parser.add_argument("--root", type=Path, default=Config().root, help=ROOT_HELP)
    parser.set_defaults(run=_gguf)


def _gguf(options: argparse.Namespace) -> None:
    from textgen.model.find import resolve
    from textgen.model.gguf import write_gguf
    from textgen.model.pretrained import load_model

    logging.getLogger("gguf").setLevel(logging.WARNING)  # it names the temporary file
    write_gguf(load_model(resolve(options.model, options.root)), options.out)
    print(options.out)


if __name__ == "__main__":
    sys.exit(main())
