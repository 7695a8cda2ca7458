"""The parts of a model card in words and in tables."""

import re
from collections.abc import Sequence
from typing import Any

from textgen.publishing.version import Decision
from textgen.text.corpus import RawManifest
from textgen.text.tokens import TokensManifest
from textgen.training.checkpoint import CheckpointManifest

MARKUP = re.compile(r"([\\`*_<>#\[\]|~&])")


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
    kilojoules = [f"{joules / 1000:.3g} kJ of its {part.upper()}s" for part, joules in speed.joules.items()]
    energy = " and ".join(kilojoules) or "its host has no counter that could be read"
    stopped = " (stopped early)" if checkpoint.stopped_early else ""
    precision = f" in {checkpoint.precision}" if checkpoint.precision is not None else ""
    return (
        f"{checkpoint.steps:,} steps{stopped}, {checkpoint.tokens_trained:,} tokens, {checkpoint.train_seconds:.1f} "
        f"seconds on {devices}{precision}, {speed.seconds['train']:.1f} of them in steps: "
        f"{speed.tokens_per_second:,.0f} tokens a second in these, {speed.mfu:.1%} of the matrix peak of "
        f"{speed.peak_flops / 1e12:.3g} TFLOP/s, {speed.memory_peak_bytes / 2**30:.2f} GiB of memory at the peak. "
        f"Energy: {energy}. The weights are those of step {checkpoint.best_step:,}, the best on validation."
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
    rows = [(name, figure(value)) for name, value in figures.items() if value is not None]
    for guard in decision.guards:
        outcome = "passed" if guard.passed else "failed"
        rows.append(
            (f"guard: {guard.name}", f"{outcome}: {figure(guard.value, '.6g')}, bound {figure(guard.bound, '.6g')}")
        )
    verdict = f"{'Promoted' if decision.promoted else 'Not promoted'}: {decision.reason}."
    return f"{verdict}\n\n{table(('decision', 'value'), rows)}" if rows else verdict


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
    sections = checkpoint.config
    rows = [("seed", sections["seed"]), ("data.seq_length", sections["data"]["seq_length"])]
    rows += [(f"{name}.{key}", value) for name in ("model", "training") for key, value in sections[name].items()]
    return [(f"`{key}`", f"`{value}`") for key, value in rows if value is not None]


def describe_environment(lineage: dict[str, Any]) -> str:
    """Return in words what the training ran with."""
    if lineage["python"] is None:
        return "What the training ran with was not recorded."
    packages = "".join(f", {package} {number}" for package, number in lineage["packages"].items())
    return f"The training ran with Python {lineage['python']}{packages}."


def origins(lineage: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the folder and the key of each thing that the model was made of."""
    stages = ("raw", "tokens", "checkpoint", "evaluation")
    rows = [(name, f"`{lineage[name]['folder']}`", f"`{lineage[name]['key']}`") for name in stages]
    return [
        *rows,
        ("code of the training", "git", f"`{lineage['git_commit'] or 'not known'}`"),
        ("flow run", "Prefect", f"`{lineage['flow_run'] or 'none'}`"),
    ]


def table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def quote(text: str) -> str:
    """Return a text as a quotation shows it: no character of it is markup or control."""
    shown = "".join(character if character.isprintable() or character == "\n" else "�" for character in text)
    return MARKUP.sub(r"\\\1", shown).replace("\n", "\n> ")
