"""The model card: README.md of a published folder, for people and, in its header, for machines."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from textgen.checkpoint import CheckpointManifest
from textgen.config import Config
from textgen.corpus import RawManifest
from textgen.evaluate import Metrics
from textgen.files import write_atomic

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD_FILE = "README.md"
PLOT_FILE = "training.png"
PLOT_INCHES = (7, 4)
PLOT_DPI = 120


class Sample(BaseModel):
    """A prompt and what the model wrote after it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    continuation: str


def write_card(
    folder: Path,
    version: str,
    checkpoint: CheckpointManifest,
    metrics: Metrics,
    raw: RawManifest,
    config: Config,
    samples: Sequence[Sample],
) -> None:
    """Write the card and its plot into `folder`."""
    from huggingface_hub import ModelCardData

    header = ModelCardData(
        model_name=f"{config.name}-{version}",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["textgen", "qwen3"],
        eval_results=_eval_results(metrics, raw),
    )
    plot_curve(checkpoint, folder / PLOT_FILE)
    body = CARD.format(
        name=config.name,
        version=version,
        parameters=checkpoint.parameters,
        source=describe_text(raw),
        tokenizer=config.tokenizer.kind,
        seq_length=config.data.seq_length,
        steps=checkpoint.steps,
        best_step=checkpoint.best_step,
        tokens_trained=checkpoint.tokens_trained,
        train_seconds=checkpoint.train_seconds,
        device=checkpoint.device,
        plot=PLOT_FILE,
        protocol=metrics.protocol,
        stride=metrics.stride,
        rows="\n".join(_metrics_row(name, metrics) for name in metrics.splits),
        samples="\n\n".join(f"> **{sample.prompt}**{_quoted(sample.continuation)}" for sample in samples),
    )
    write_atomic(folder / CARD_FILE, f"---\n{header.to_yaml()}\n---\n{body}")


CARD = """
# {name} {version}

A decoder-only Transformer language model, trained from scratch with textgen: {parameters:,} parameters in the shape of
Qwen3, a context of {seq_length} tokens, the `{tokenizer}` tokenizer.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/of/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")
```

## Data

{source}

## Training

{steps:,} steps, {tokens_trained:,} tokens, {train_seconds:.0f} seconds on {device}. The weights are those of step
{best_step:,}, the best on validation. `lineage.json` has the configuration, the hashes of the data and the code.

![Loss while training]({plot})

## Perplexity

Protocol `{protocol}`, context {seq_length} tokens, stride {stride}.

| split | loss (nats a token) | token perplexity | word perplexity | bits a byte | tokens | words + rows | bytes |
|---|---|---|---|---|---|---|---|
{rows}

Token perplexity depends on the tokenizer. Word perplexity divides the nats of the split by its words (separated by
white space) and its rows (each row's end counts as a word); bits a byte divides them by its bytes in UTF-8.

## Samples

{samples}
"""


def _metrics_row(name: str, metrics: Metrics) -> str:
    split = metrics.splits[name]
    word = "-" if split.word_perplexity is None else f"{split.word_perplexity:.2f}"
    bits = "-" if split.bits_per_byte is None else f"{split.bits_per_byte:.4f}"
    return (
        f"| {name} | {split.loss_nats:.4f} | {split.token_perplexity:.2f} | {word} | {bits} "
        f"| {split.tokens:,} | {split.words + split.rows:,} | {split.bytes:,} |"
    )


def _eval_results(metrics: Metrics, raw: RawManifest) -> list["EvalResult"]:
    from huggingface_hub import EvalResult

    results = []
    for name, split in metrics.splits.items():
        values = {
            "token perplexity": split.token_perplexity,
            "word perplexity": split.word_perplexity,
            "bits per byte": split.bits_per_byte,
        }
        results += [
            EvalResult(
                task_type="text-generation",
                dataset_type=raw.name,
                dataset_name=raw.name,
                dataset_split=name,
                dataset_revision=raw.revision,
                metric_type=metric.replace(" ", "_"),
                metric_name=metric,
                metric_value=value,
            )
            for metric, value in values.items()
            if value is not None
        ]
    return results


def describe_text(raw: RawManifest) -> str:
    """Return a sentence on where the text comes from and how much there is of it."""
    source = raw.source
    match source["kind"]:
        case "python-docs":
            origin = f"The docstrings of Python {source['python']}'s standard library, a document a module"
        case "hub":
            config = f", configuration {source['dataset_config']}" if source["dataset_config"] else ""
            origin = f"{source['dataset_name']} from the Hugging Face Hub{config}, commit {source['revision']}"
        case "folder":
            config = f", configuration {source['dataset_config']}" if source["dataset_config"] else ""
            origin = f"The local folder {source['folder']}{config}"
        case _:
            origin = "Local files"
    counts = "; ".join(f"{name}: {split.rows:,} rows, {split.words:,} words" for name, split in raw.splits.items())
    return f"{origin}. {counts}."


def _quoted(text: str) -> str:
    return text.replace("\n", "\n> ")


def plot_curve(checkpoint: CheckpointManifest, path: Path) -> None:
    """Draw the loss on train and validation over the tokens trained on."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=PLOT_INCHES, dpi=PLOT_DPI, layout="constrained", facecolor="white")
    axes = figure.subplots()
    trained = [point for point in checkpoint.curve if point.train_loss_nats is not None]
    axes.plot([p.tokens for p in trained], [p.train_loss_nats for p in trained], label="train")
    axes.plot([p.tokens for p in checkpoint.curve], [p.loss_nats for p in checkpoint.curve], label="validation")
    best = next(point for point in checkpoint.curve if point.step == checkpoint.best_step)
    axes.plot(best.tokens, best.loss_nats, "o", label=f"published: step {best.step:,}")
    axes.set(xlabel="tokens trained on", ylabel="loss (nats a token)")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Software": None})  # the same curve gives the same bytes
