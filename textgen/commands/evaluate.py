"""`textgen evaluate`: a model's perplexity."""

import argparse
import json
from dataclasses import replace

from textgen.commands.arguments import MODEL_HELP, ROOT_HELP, Commands
from textgen.config import Config, EvaluationConfig, StorageConfig
from textgen.files import expand_home
from textgen.terminal import say


def add_evaluate(commands: Commands) -> None:
    """Add `evaluate` to the commands."""
    parser = commands.add_parser("evaluate", help="measure a model's perplexity")
    together = "several: the mean of their probabilities"
    parser.add_argument("models", nargs="+", metavar="MODEL", help=f"{MODEL_HELP}; {together}")
    parser.add_argument(
        "--text", type=expand_home, metavar="FILE", help="in UTF-8, a row a line; else its own held-out splits"
    )
    parser.add_argument("--protocol", choices=["sliding", "blocks", "lm-eval"], default=Config().evaluation.protocol)
    parser.add_argument(
        "--weights", choices=("fp32", "int8"), default="fp32", help="int8: as `serve --weights int8` runs the model"
    )
    parser.add_argument("--root", default=StorageConfig().root, help=ROOT_HELP)
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from textgen.evaluation.evaluate import evaluate_splits, evaluate_text, read_tokens
    from textgen.evaluation.protocols import DEFINITIONS
    from textgen.evaluation.scoring import figure_in_words
    from textgen.model.cached import CachedModel
    from textgen.model.device import choose_device, share_cores
    from textgen.model.ensemble import join
    from textgen.model.find import resolve
    from textgen.model.pretrained import load_finite_model
    from textgen.publishing.version import published_stride
    from textgen.storage import Storage

    storage = Storage.at(options.root)
    folders = [resolve(name, storage) for name in options.models]
    share_cores()
    models = [load_finite_model(folder, choose_device("auto")) for folder in folders]
    if options.weights == "int8":
        rows = EvaluationConfig().batch_size
        models = [
            replace(model, scorer=CachedModel(model.model, model.seq_length, rows, int8=True)) for model in models
        ]
    loaded = join(models, options.models)
    strides = {published_stride(folder) for folder in folders}
    half = max(1, loaded.seq_length // 2)
    published = strides.pop() if len(strides) == 1 else None
    stride = (published or half) if options.protocol == "sliding" else loaded.seq_length
    evaluation = EvaluationConfig(protocol=options.protocol, stride=stride)
    if options.text is not None:
        measured = {"text": evaluate_text(loaded, options.text, evaluation)}
    else:
        measured = evaluate_splits(loaded, read_tokens(folders, storage), evaluation, stride)
    splits = {name: split.metrics for name, split in measured.items()}
    if options.json:
        measured_by = {"protocol": options.protocol, "seq_length": loaded.seq_length, "stride": stride}
        by_split = {name: metrics.model_dump(mode="json") for name, metrics in splits.items()}
        together = {"models": options.models} if len(models) > 1 else {}
        say(json.dumps({**by_split, **measured_by, **together}, indent=2))
        return
    if len(models) > 1:
        say(f"the mean of the probabilities of {len(models)} models")
    say(f"{options.protocol}: context {loaded.seq_length}, stride {stride}")
    for part, description in DEFINITIONS[options.protocol].model_dump().items():
        say(f"  {part:18} {description}")
    for name, metrics in splits.items():
        say(name)
        for figure, value in metrics.model_dump().items():
            say(f"  {figure:18} {f'{value:,}' if isinstance(value, int) else figure_in_words(figure, value)}")
