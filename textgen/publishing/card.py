"""The model card: README.md of a published folder, for people and, in its header, for machines."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from textgen.config import Config
from textgen.evaluation.evaluate import Metrics
from textgen.files import write_atomic
from textgen.publishing.card_text import (
    dataset_name,
    describe_decision,
    describe_environment,
    describe_source,
    describe_tokenizer,
    describe_training,
    figure,
    hyperparameters,
    origins,
    quote,
    table,
)
from textgen.publishing.plots import plot_data, plot_training, words_by_row
from textgen.publishing.version import Decision, Sample
from textgen.text.corpus import RawManifest, read_rows
from textgen.text.tokens import TokensManifest
from textgen.training.checkpoint import CheckpointManifest

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
        hyperparameters=table(("setting", "value"), hyperparameters(checkpoint)),
        training_plot=TRAINING_PLOT,
        protocol=metrics.protocol,
        stride=metrics.stride,
        text=metrics.definition.text,
        context=metrics.definition.context,
        denominators=metrics.definition.denominators,
        metrics_rows="\n".join(_metrics_row(name, metrics) for name in metrics.splits),
        decision=describe_decision(decision),
        samples="\n\n".join(f"> **{quote(sample.prompt)}**{quote(sample.continuation)}" for sample in samples),
        environment=describe_environment(lineage),
        lineage=table(("what", "where", "key or commit"), origins(lineage)),
    )
    write_atomic(folder / CARD_FILE, f"---\n{header.to_yaml()}\n---\n{body}")


# A paragraph is one line: Prefect's UI breaks it where a line ends.
CARD = """
# {name} {version}

A decoder-only Transformer language model, trained from scratch with textgen: {parameters:,} parameters in the shape \
of Qwen3, a context of {seq_length} tokens, {tokenizer}.

## Uses and limits

It continues text that is like the text it was trained on, for study, for comparison and as a base to train further. \
It is small: it knows no facts to rely on, follows no instructions, was not aligned or filtered, and repeats the \
biases of its data. Past {seq_length} tokens of context it was neither trained nor measured. Do not let it \
decide about people.

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
| tokens scored | tokens | words | rows | bytes |
|---|---|---|---|---|---|---|---|---|---|---|
{metrics_rows}

Loss is the mean over the scored tokens, and token perplexity, e to it, depends on the tokenizer. Word and byte \
perplexity and bits a byte spread it over all tokens and divide by the words or the bytes. `metrics.json` has all the \
digits.

## Promotion

{decision}

## Samples

The prompts, in bold, are the first words of validation rows.

{samples}

## Environment and lineage

{environment}

{lineage}

`lineage.json` has the sha256 of every file.
"""


def _data_row(split: str, raw: RawManifest, tokens: TokensManifest) -> str:
    text, counts = raw.splits[split], tokens.splits[split]
    median = np.median(words_by_row(read_rows(raw, split)) if text.words else [0])
    return (
        f"| {split} | {text.rows:,} | {text.words:,} | {text.text_bytes:,} | {counts.tokens:,} | {counts.unknown:,} "
        f"| {text.text_bytes / max(1, counts.tokens):.3f} | {median:,.0f} |"
    )


def _metrics_row(name: str, metrics: Metrics) -> str:
    split = metrics.splits[name]
    token, word = figure(split.token_perplexity, ".2f"), figure(split.word_perplexity, ".2f")
    byte, bits = figure(split.byte_perplexity), figure(split.bits_per_byte)
    return (
        f"| {name} | {split.loss_nats:.4f} | {token} | {word} | {byte} | {bits} "
        f"| {split.tokens_scored:,} | {split.tokens:,} | {split.words:,} | {split.rows:,} | {split.bytes:,} |"
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
