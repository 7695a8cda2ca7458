"""The model card: README.md of a published folder, for people and, in its header, for machines."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from textgen.checkpoint import CheckpointManifest
from textgen.config import Config
from textgen.corpus import RawManifest, read_rows
from textgen.evaluate import Metrics
from textgen.files import write_atomic
from textgen.gate import Decision
from textgen.plots import plot_data, plot_training, words_by_row
from textgen.tokens import TokensManifest

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD_FILE = "README.md"
TRAINING_PLOT = "training.png"
DATA_PLOT = "data.png"
UNKNOWN_LICENCE = "not known to textgen; see its source"
LICENCES = {
    "python-docs": "Python Software Foundation License 2.0",
    "Salesforce/wikitext": "CC BY-SA 3.0 and GFDL",
}
LANGUAGES = {"python-docs": "en", "Salesforce/wikitext": "en"}


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
    tokens: TokensManifest,
    raw: RawManifest,
    config: Config,
    samples: Sequence[Sample],
    decision: Decision,
    lineage: dict[str, Any],
) -> None:
    """Write the card and its plots into `folder`."""
    from huggingface_hub import ModelCardData

    plot_training(checkpoint, folder / TRAINING_PLOT)
    plot_data(raw, tokens, folder / DATA_PLOT)
    header = ModelCardData(
        model_name=f"{config.name}-{version}",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["textgen", "qwen3"],
        datasets=[raw.source["dataset_name"]] if raw.source["kind"] == "hub" else None,
        language=LANGUAGES.get(dataset_name(raw)),
        eval_results=_eval_results(metrics, raw),
    )
    body = CARD.format(
        name=config.name,
        version=version,
        parameters=checkpoint.parameters,
        seq_length=metrics.seq_length,
        tokenizer=describe_tokenizer(tokens),
        source=describe_source(raw),
        licence=LICENCES.get(dataset_name(raw), UNKNOWN_LICENCE),
        data_rows="\n".join(_data_row(split, raw, tokens) for split in raw.splits),
        data_plot=DATA_PLOT,
        training=describe_training(checkpoint),
        hyperparameters=_table(("setting", "value"), _hyperparameters(checkpoint)),
        training_plot=TRAINING_PLOT,
        protocol=metrics.protocol,
        stride=metrics.stride,
        text=metrics.definition.text,
        context=metrics.definition.context,
        denominators=metrics.definition.denominators,
        metrics_rows="\n".join(_metrics_row(name, metrics) for name in metrics.splits),
        decision=describe_decision(decision),
        samples="\n\n".join(f"> **{sample.prompt}**{_quoted(sample.continuation)}" for sample in samples),
        packages=", ".join(f"{package} {number}" for package, number in lineage["packages"].items()),
        python=lineage["python"],
        lineage=_table(("what", "where", "key or commit"), _origins(lineage)),
    )
    write_atomic(folder / CARD_FILE, f"---\n{header.to_yaml()}\n---\n{body}")


CARD = """
# {name} {version}

A decoder-only Transformer language model, trained from scratch with textgen: {parameters:,} parameters in the shape of
Qwen3, a context of {seq_length} tokens, {tokenizer}.

## Uses and limits

It continues text that is like the text it was trained on, for study, for comparison and as a base to train further. It
is small: it knows no facts to rely on, follows no instructions, was not aligned or filtered, and repeats the biases of
its data. Past {seq_length} tokens of context it was neither trained nor measured. Do not let it decide about people.

## How to use it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/of/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")
inputs = tokenizer("The", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=48)[0]))
```

## Data

{source} Licence: {licence}.

| split | rows | words | bytes | tokens | unknown tokens | bytes a token | words in a row, median |
|---|---|---|---|---|---|---|---|
{data_rows}

![How long the rows are, and how often tokens occur]({data_plot})

## Training

{training}

{hyperparameters}

![Loss while training]({training_plot})

## Evaluation

Protocol `{protocol}`, seq_length {seq_length}, stride {stride}.

- Text: {text}.
- Tokens that a scored token sees: {context}.
- Denominators: {denominators}.

| split | loss (nats a token) | token perplexity | word perplexity | byte perplexity | bits a byte \
| tokens | words | rows | bytes |
|---|---|---|---|---|---|---|---|---|---|
{metrics_rows}

Loss is the mean over the scored tokens, and token perplexity, e to it, depends on the tokenizer. Word and byte
perplexity and bits a byte spread it over all tokens and divide by the words or the bytes. `metrics.json` has all the
digits.

## Promotion

{decision}

## Samples

The prompts, in bold, are the first words of validation rows.

{samples}

## Environment and lineage

Python {python}, {packages}.

{lineage}

`lineage.json` has the sha256 of every file.
"""


def describe_source(raw: RawManifest) -> str:
    """Return a sentence on where the text comes from."""
    source = raw.source
    config = f", configuration `{source['dataset_config']}`" if source.get("dataset_config") else ""
    match source["kind"]:
        case "python-docs":
            return f"The docstrings of Python {source['python']}'s standard library, a row a module."
        case "hub":
            name, commit = source["dataset_name"], source["revision"]
            return f"`{name}` from the Hugging Face Hub{config}, commit `{commit}`."
        case "folder":
            return f"The local folder `{source['folder']}`{config}."
        case _:
            return "Local files."


def dataset_name(raw: RawManifest) -> str:
    """Return what the text is known by: a name on the Hub, or else that of its folder in data/raw."""
    return raw.source.get("dataset_name") or raw.name


def describe_tokenizer(tokens: TokensManifest) -> str:
    """Return in words which tokenizer it is."""
    match tokens.tokenizer.kind:
        case "gpt2":
            return f"GPT-2's tokenizer of {tokens.vocab_size:,} ids"
        case "bpe":
            return f"a byte-level BPE of {tokens.vocab_size:,} ids, trained on the train split"
        case "word":
            return f"the {tokens.vocab_size:,} words of the train split as its vocabulary"


def describe_training(checkpoint: CheckpointManifest) -> str:
    """Return in words how long the training was and what the hardware gave."""
    speed = checkpoint.speed
    devices = checkpoint.device if checkpoint.devices == 1 else f"{checkpoint.devices} of {checkpoint.device}"
    stopped = " (stopped early)" if checkpoint.stopped_early else ""
    return (
        f"{checkpoint.steps:,} steps{stopped}, {checkpoint.tokens_trained:,} tokens, {checkpoint.train_seconds:.0f} "
        f"seconds on {devices}: {speed.tokens_per_second:,.0f} tokens a second, {speed.mfu:.1%} of the matrix peak of "
        f"{speed.peak_flops / 1e12:.3g} TFLOP/s, {speed.memory_peak_bytes / 2**30:.2f} GiB of memory at the peak. "
        f"Energy: not measured. The weights are those of step {checkpoint.best_step:,}, the best on validation."
    )


def describe_decision(decision: Decision) -> str:
    """Return whether the version became the champion, the figures that said so, and the guards."""
    figures = {
        "compared with": decision.opponent,
        "protocol": decision.protocol,
        "unit": decision.unit,
        "documents of test": decision.documents,
        "this version": decision.challenger,
        "compared with it": decision.champion,
        "difference (below zero is better)": decision.difference,
        "its interval, low": decision.low,
        "its interval, high": decision.high,
        "confidence reached": decision.confidence,
        "confidence required": decision.required_confidence,
        "improvement required": decision.min_improvement,
    }
    rows = [(name, _figure(value)) for name, value in figures.items() if value is not None]
    for guard in decision.guards:
        outcome = "passed" if guard.passed else "failed"
        rows.append((f"guard: {guard.name}", f"{outcome}: {_figure(guard.value)}, bound {_figure(guard.bound)}"))
    verdict = f"{'Promoted' if decision.promoted else 'Not promoted'}: {decision.reason}."
    return f"{verdict}\n\n{_table(('decision', 'value'), rows)}" if rows else verdict


def _figure(value: str | float | None) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:.4f}"
        case _:
            return str(value)


def _hyperparameters(checkpoint: CheckpointManifest) -> list[tuple[str, str]]:
    """Return what the training was set to, by configuration key, keys that are off left out."""
    sections = checkpoint.config
    rows = [("seed", sections["seed"]), ("data.seq_length", sections["data"]["seq_length"])]
    rows += [(f"{name}.{key}", value) for name in ("model", "training") for key, value in sections[name].items()]
    return [(f"`{key}`", f"`{value}`") for key, value in rows if value is not None]


def _origins(lineage: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the folder and the key of each thing that the model was made of."""
    stages = ("raw", "tokens", "checkpoint", "evaluation")
    rows = [(name, f"`{lineage[name]['folder']}`", f"`{lineage[name]['key']}`") for name in stages]
    return [
        *rows,
        ("code", "git", f"`{lineage['git_commit'] or 'not a checkout'}`"),
        ("flow run", "Prefect", f"`{lineage['flow_run'] or 'none'}`"),
    ]


def _data_row(split: str, raw: RawManifest, tokens: TokensManifest) -> str:
    text, counts = raw.splits[split], tokens.splits[split]
    median = np.median(words_by_row(read_rows(raw, split)) if text.words else [0])
    return (
        f"| {split} | {text.rows:,} | {text.words:,} | {text.text_bytes:,} | {counts.tokens:,} | {counts.unknown:,} "
        f"| {text.text_bytes / max(1, counts.tokens):.3f} | {median:,.0f} |"
    )


def _metrics_row(name: str, metrics: Metrics) -> str:
    split = metrics.splits[name]
    word = "-" if split.word_perplexity is None else f"{split.word_perplexity:.2f}"
    byte = "-" if split.byte_perplexity is None else f"{split.byte_perplexity:.4f}"
    bits = "-" if split.bits_per_byte is None else f"{split.bits_per_byte:.4f}"
    return (
        f"| {name} | {split.loss_nats:.4f} | {split.token_perplexity:.2f} | {word} | {byte} | {bits} "
        f"| {split.tokens:,} | {split.words:,} | {split.rows:,} | {split.bytes:,} |"
    )


def _eval_results(metrics: Metrics, raw: RawManifest) -> list["EvalResult"]:
    from huggingface_hub import EvalResult

    protocol = {"protocol": metrics.protocol, "seq_length": metrics.seq_length, "stride": metrics.stride}
    results = []
    for name, split in metrics.splits.items():
        values = {
            "token perplexity": split.token_perplexity,
            "word perplexity": split.word_perplexity,
            "byte perplexity": split.byte_perplexity,
            "bits per byte": split.bits_per_byte,
        }
        results += [
            EvalResult(
                task_type="text-generation",
                dataset_type=dataset_name(raw),
                dataset_name=dataset_name(raw),
                dataset_config=raw.source.get("dataset_config"),
                dataset_split=name,
                dataset_revision=raw.revision,
                metric_type=metric.replace(" ", "_"),
                metric_name=metric,
                metric_value=value,
                metric_args=protocol,
            )
            for metric, value in values.items()
            if value is not None
        ]
    return results


def _table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _quoted(text: str) -> str:
    return text.replace("\n", "\n> ")
