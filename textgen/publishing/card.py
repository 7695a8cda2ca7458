"""The model card: README.md of a published folder, for people and, in its header, for machines."""

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from textgen.evaluation.scoring import Metrics
from textgen.files import write_atomic
from textgen.publishing.candidate import Candidate
from textgen.publishing.markdown import code, inline, quote, table, without_fences
from textgen.publishing.plots import plot_data, plot_training
from textgen.publishing.tokenizer_fit import TokenizerFit, in_bytes
from textgen.publishing.verdict import figure_rows, in_markdown, moved_in_markdown
from textgen.publishing.version import Decision, Sample
from textgen.sections import TrainingConfig
from textgen.settings import default_values, flat
from textgen.terminal import counted
from textgen.text.corpus import RawManifest, file_names
from textgen.text.report import TextReport
from textgen.text.sources import about
from textgen.text.tokens import TokensManifest, load_documents
from textgen.training.checkpoint import CheckpointManifest

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD_FILE = "README.md"
TRAINING_PLOT = "training.png"
DATA_PLOT = "data.png"
NAMED = 5  # files
FOLDED = re.compile(r"<details>.*?</details>\n*", re.DOTALL)
TEMPLATE_FILE = "card.md"  # a paragraph in it is one line: Prefect's UI breaks it where a line ends


def write_card(
    folder: Path,
    version: str,
    candidate: Candidate,
    report: TextReport,
    samples: Sequence[Sample],
    decision: Decision,
    lineage: dict[str, Any],
) -> None:
    """Write the card and its plots into `folder`."""
    checkpoint, metrics, tokens, raw = candidate.checkpoint, candidate.metrics, candidate.tokens, candidate.raw
    plot_training(checkpoint, folder / TRAINING_PLOT)
    plot_data(tokens, folder / DATA_PLOT)
    template = resources.files(__package__).joinpath(TEMPLATE_FILE).read_text("utf-8")
    corpus = about(_without_fences(raw.source))
    verdict = in_markdown(decision, version)
    body = template.format(
        name=candidate.config.name,
        version=version,
        verdict=verdict if figure_rows(decision, version) else f"{verdict}\n\n{losses(metrics, tokens)}",
        samples="\n\n".join(f"> **{quote(sample.prompt)}**{quote(sample.continuation)}" for sample in samples),
        parameters=checkpoint.parameters,
        seq_length=metrics.seq_length,
        tokenizer=tokenizer_in_words(tokens, candidate.fit),
        source=corpus.sentence,
        licence=corpus.licence,
        reading=_reading(raw, report),
        data=data_table(report, tokens),
        data_plot=DATA_PLOT,
        counts=folded("All counts of the text", counts_table(raw, tokens)),
        training=training_in_words(checkpoint),
        training_plot=TRAINING_PLOT,
        changed=_changed(checkpoint),
        hyperparameters=folded("All settings", table(("setting", "value"), hyperparameters(checkpoint))),
        metrics=losses(metrics, tokens),
        protocol=folded("How it was measured, and all figures", protocol_in_words(metrics)),
        moved=moved_in_markdown(decision, version),
        decision=folded("All figures of the decision", figures_of(decision)) or "Nothing was compared.",
        environment=environment_in_words(lineage),
        lineage=table(("what", "where", "key or commit"), origins(lineage)),
    )
    body = re.sub("\n{3,}", "\n\n", body)  # where there is nothing to say
    write_atomic(folder / CARD_FILE, f"---\n{_header(version, candidate)}\n---\n\n{body}")


def folded(title: str, text: str) -> str:
    """Return a part of the card that opens where its title is clicked; nothing where there is no text."""
    return f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>" if text else ""


def without_folded(body: str) -> str:
    """Return a card without the parts that are folded in it."""
    return FOLDED.sub("", body)


def _header(version: str, candidate: Candidate) -> str:
    """Return what machines read of a card, in YAML."""
    from huggingface_hub import ModelCardData

    source = candidate.raw.source
    header = ModelCardData(
        model_name=f"{candidate.config.name}-{version}",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["textgen", "qwen3"],
        datasets=[source["dataset_name"]] if source["kind"] == "hub" else None,
        language=about(source).language,
        eval_results=_eval_results(candidate.metrics, candidate.raw),
    )
    return header.to_yaml()


def _without_fences(source: dict[str, Any]) -> dict[str, Any]:
    """Return what a corpus comes from, its names such that they may stand between backticks."""
    return {key: without_fences(value) if isinstance(value, str) else value for key, value in source.items()}


def _reading(raw: RawManifest, report: TextReport) -> str:
    """Return which local files there were and what was done to them, as the end of a paragraph."""
    if (reading := raw.reading) is None:
        return ""
    names = sorted({name for split in raw.splits for name in file_names(raw, split)})
    named = ", ".join(code(name) for name in names[:NAMED]) + ", …" * (len(names) > NAMED)
    kinds = sorted({kind for split in report.splits.values() for kind in split.kinds})
    done = [
        f"{counted(len(names), 'file')} of {', '.join(code(kind) for kind in kinds)}: {named}.",
        *([f"Long files were cut into documents of about {reading.cut_words:,} words."] * reading.cut),
        *([f"Copies of documents that were left out: {reading.copies:,}."] * (reading.copies > 0)),
    ]
    return "".join(f" {sentence}" for sentence in done)


def data_table(report: TextReport, tokens: TokensManifest) -> str:
    """Return how much text each split is."""
    rows = [
        (split, f"{one.documents:,}", f"{one.words:,}", f"{tokens.splits[split].tokens:,}", figure(one.overlap, ".1%"))
        for split, one in report.splits.items()
    ]
    return table(("split", "documents", "words", "tokens", "stands in train"), rows)


def counts_table(raw: RawManifest, tokens: TokensManifest) -> str:
    """Return every count of the text and its tokens."""
    titles = ("split", "rows", "bytes", "unknown tokens", "bytes a token", "words in a document, median")
    rows = []
    for split, text in raw.splits.items():
        counts = tokens.splits[split]
        median = np.median(load_documents(tokens, split)["words"].numpy())  # torch's quantile takes 2^24 values at most
        ratio = f"{text.text_bytes / max(1, counts.tokens):.3f}"
        rows.append((split, f"{text.rows:,}", f"{text.text_bytes:,}", f"{counts.unknown:,}", ratio, f"{median:,.0f}"))
    return table(titles, rows)


def losses(metrics: Metrics, tokens: TokensManifest) -> str:
    """Return the figures of each split that a reader compares."""
    by_word = tokens.tokenizer.kind == "word"  # where words are what is predicted
    titles = ("split", "loss (nats a token)", "word perplexity" if by_word else "token perplexity", "bits a byte")
    rows = [
        (split, f"{one.loss_nats:.4f}", figure(one.word_perplexity if by_word else one.token_perplexity, ",.2f"),
         figure(one.bits_per_byte))
        for split, one in metrics.splits.items()
    ]  # fmt: skip
    return table(titles, rows)


def protocol_in_words(metrics: Metrics) -> str:
    """Return how a model was measured, and every figure of it."""
    definition = metrics.definition
    titles = (
        "split", "token perplexity", "word perplexity", "byte perplexity", "tokens scored", "tokens", "words", "rows",
        "bytes",
    )  # fmt: skip
    rows = [
        (name, figure(one.token_perplexity, ",.2f"), figure(one.word_perplexity, ",.2f"), figure(one.byte_perplexity),
         *(f"{count:,}" for count in (one.tokens_scored, one.tokens, one.words, one.rows, one.bytes)))
        for name, one in metrics.splits.items()
    ]  # fmt: skip
    return (
        f"Protocol `{metrics.protocol}`, seq_length {metrics.seq_length}, stride {metrics.stride}.\n\n"
        f"- Text: {definition.text}.\n- Tokens that a scored token sees: {definition.context}.\n"
        f"- Denominators: {definition.denominators}.\n\n{table(titles, rows)}\n\n`metrics.json` has all the digits."
    )


def _eval_results(metrics: Metrics, raw: RawManifest) -> list["EvalResult"]:
    from huggingface_hub import EvalResult

    protocol = {"protocol": metrics.protocol, "seq_length": metrics.seq_length, "stride": metrics.stride}
    name_of_text = about(raw.source).name or raw.name
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
                dataset_type=name_of_text,
                dataset_name=name_of_text,
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


def tokenizer_in_words(tokens: TokensManifest, fit: TokenizerFit | None) -> str:
    """Return in words which tokenizer it is, and which version it was kept from."""
    text = "the train split" if fit is None else f"the text of {inline(fit.made_for)}"
    match tokens.tokenizer.kind:
        case "gpt2":
            return f"GPT-2's tokenizer of {tokens.vocab_size:,} ids"
        case "bpe":
            words = f"a byte-level BPE of {tokens.vocab_size:,} ids, trained on {text}"
        case "word":
            words = f"the {tokens.vocab_size:,} words of {text} as its vocabulary"
    return words if fit is None else f"{words} ({in_bytes(fit)})"


def training_in_words(checkpoint: CheckpointManifest) -> str:
    """Return in words how long the training was and what the hardware gave."""
    speed = checkpoint.speed
    device = inline(checkpoint.device)
    devices = device if checkpoint.devices == 1 else f"{checkpoint.devices} of {device}"
    kilojoules = [f"{joules / 1000:.3g} kJ of its {part.upper()}s" for part, joules in speed.joules.items()]
    energy = " and ".join(kilojoules) or "its host has no counter that could be read"
    stopped = " (stopped early)" if checkpoint.stopped_early else ""
    precision = f" in {checkpoint.precision}" if checkpoint.precision is not None else ""
    return (
        f"{counted(checkpoint.steps, 'step')}{stopped}, {checkpoint.tokens_trained:,} tokens, "
        f"{checkpoint.train_seconds:.1f} seconds on {devices}{precision}, "
        f"{speed.seconds['train']:.1f} of them in steps: "
        f"{speed.tokens_per_second:,.0f} tokens a second in these, {speed.mfu:.1%} of the matrix peak of "
        f"{speed.peak_flops / 1e12:.3g} TFLOP/s, {speed.memory_peak_bytes / 2**30:.2f} GiB of memory at the peak. "
        f"Energy: {energy}. The weights are those of step {checkpoint.best_step:,}, the best on validation."
    )


def figures_of(decision: Decision) -> str:
    """Return the figures that the gate decided by, and its guards; nothing where it had none."""
    figures = {
        "compared with": decision.opponent,
        "protocol": decision.protocol,
        "difference, below zero is better": decision.difference,
        "its interval, low": decision.low,
        "its interval, high": decision.high,
        "confidence reached": decision.confidence,
        "confidence required": decision.required_confidence,
        "improvement required": decision.min_improvement,
    }
    rows = [(name, inline(figure(value))) for name, value in figures.items() if value is not None]
    for guard in decision.guards:
        outcome = "passed" if guard.passed else "failed"
        measured = f"{outcome}: {figure(guard.value, '.6g')}, bound {figure(guard.bound, '.6g')}"
        rows.append((f"guard: {inline(guard.name)}", measured))
    return table(("decision", "value"), rows) if rows else ""


def figure(value: str | float | None, form: str = ".4f") -> str:
    """Return a figure with its decimals, `-` where there is none."""
    match value:
        case None:
            return "-"
        case float():
            return format(value, form)
        case _:
            return str(value)


def hyperparameters(checkpoint: CheckpointManifest) -> list[tuple[str, str]]:
    """Return what the training was set to, by configuration key, keys that are off left out."""
    return [(code(key), code(str(value))) for key, value in _settings(checkpoint).items() if value is not None]


def _changed(checkpoint: CheckpointManifest) -> str:
    """Return the settings of the training that differ from the defaults."""
    default = default_values()
    default |= {f"training.{key}": value for key, value in TrainingConfig().pace(checkpoint.steps)._asdict().items()}
    rows = [
        (code(key), code(str(value)), code(str(default.get(key))))
        for key, value in _settings(checkpoint).items()
        if value != default.get(key)
    ]
    if not rows:
        return "All settings are the defaults."
    return f"Settings that differ from the defaults:\n\n{table(('setting', 'value', 'default'), rows)}"


def _settings(checkpoint: CheckpointManifest) -> dict[str, Any]:
    sections = checkpoint.config
    shown = {"seed": sections["seed"], "data": {"seq_length": sections["data"]["seq_length"]}}
    return flat({**shown, "model": sections["model"], "training": sections["training"]})


def environment_in_words(lineage: dict[str, Any]) -> str:
    """Return in words what the training ran with."""
    if lineage["python"] is None:
        return "What the training ran with was not recorded."
    packages = "".join(f", {inline(package)} {inline(number)}" for package, number in lineage["packages"].items())
    return f"The training ran with Python {inline(lineage['python'])}{packages}."


def origins(lineage: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the folder and the key of each thing that the model was made of."""
    stages = ("raw", "tokens", "checkpoint", "evaluation")
    rows = [(name, code(lineage[name]["folder"]), code(lineage[name]["key"])) for name in stages]
    return [
        *rows,
        ("code of the training", "git", code(lineage["git_commit"] or "not known")),
        ("flow run", "Prefect", code(lineage["flow_run"] or "none")),
    ]
