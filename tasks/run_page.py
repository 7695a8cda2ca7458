"""What the W&B page of a run shows, taken from our own records: names, configuration, figures and tables."""

from collections.abc import Sequence
from typing import Any

from textgen.config import Config
from textgen.evaluation.scoring import FIGURES, Metrics
from textgen.publishing.verdict import background, decision_of, figure_rows, headline, moved_rows
from textgen.publishing.version import PublishedManifest
from textgen.sections import DataConfig
from textgen.text.sources import EMBEDDED_CORPUS
from textgen.training.checkpoint import CheckpointManifest

Table = tuple[Sequence[str], list[Sequence[Any]]]  # the titles and the rows

# The page has a section for each prefix. Every chart is over the first of the axes.
AXES = ("tokens", "step", "seconds")
SECTIONS = ("train", "validation", "speed")
RENAMED = {"train/tokens_per_second": "speed/tokens_per_second", "train/mfu": "speed/mfu"}
DECIDED = (
    "promoted", "opponent", "unit", "documents", "challenger", "champion", "difference", "low", "high", "confidence",
    "required_confidence", "protocol", "reason",
)  # fmt: skip
LONGEST_TAG = 64  # characters
NOT_OF_THE_MODEL = {"compute", "storage", "tracking"}  # sections that say where a run is, not what it makes


def described(config: Config) -> dict[str, Any]:
    """Return what makes the model: no key of a data source that was not used, and none that is null."""
    sections = config.model_dump(mode="json", exclude=NOT_OF_THE_MODEL)
    sections["data"] = {name: sections["data"][name] for name in _data_keys(config.data)}
    return {name: _without_nulls(section) for name, section in sections.items()}


def _data_keys(data: DataConfig) -> list[str]:
    keys = ["end_of_document", "max_overlap", "seq_length"]
    if data.files is not None:
        splits = [] if isinstance(data.files, dict) else ["validation_fraction", "test_fraction"]
        return ["files", "text_column", "document", *splits, *keys]
    if data.path is not None:
        return ["path", "dataset_config", "document", *keys]
    if data.dataset_name == EMBEDDED_CORPUS:
        return ["dataset_name", *keys]
    return ["dataset_name", "dataset_config", "revision", *keys]


def _without_nulls(section: Any) -> Any:
    if not isinstance(section, dict):
        return section
    return {name: value for name, value in section.items() if value is not None}


def tags_of(config: Config) -> list[str]:
    """Return the words by which runs are filtered: the model, its text and its tokenizer."""
    data = config.data
    text = "files" if data.files is not None else "folder" if data.path is not None else data.dataset_name
    return list(dict.fromkeys(map(tag, (config.name, text, f"{config.tokenizer.kind} tokenizer"))))


def tag(text: str) -> str:
    """Return a text as a tag, which W&B limits in length."""
    return text[:LONGEST_TAG]


def row_of(step: int, line: dict[str, float], tokens_per_step: int) -> dict[str, float]:
    """Return a line of the training's log as a row of the run's history, with its place on each axis."""
    row: dict[str, float] = {"tokens": step * tokens_per_step, "step": step}
    if phases := [value for name, value in line.items() if name.startswith("seconds/")]:
        row["seconds"] = sum(phases)
    if (peak := line.get("train/memory_peak_bytes")) is not None:
        row["speed/memory_peak_gib"] = peak / 2**30
    for name, value in line.items():
        if name.startswith(("train/", "validation/")) and name not in ("train/tokens", "train/memory_peak_bytes"):
            row[RENAMED.get(name, name)] = value
    return row


def training_figures(checkpoint: CheckpointManifest) -> dict[str, Any]:
    """Return the figures of a whole training."""
    speed = checkpoint.speed
    return {
        "speed/tokens_per_second": speed.tokens_per_second,
        "speed/mfu": speed.mfu,
        "speed/memory_peak_gib": speed.memory_peak_bytes / 2**30,
        **{f"speed/seconds_{phase}": seconds for phase, seconds in speed.seconds.items()},
        **{f"speed/joules_{part}": joules for part, joules in speed.joules.items()},
        "train/best_step": checkpoint.best_step,
        "train/stopped_early": checkpoint.stopped_early,
    }


def evaluation_figures(metrics: Metrics) -> dict[str, Any]:
    """Return the final metrics of each whole split. The validations during the training have other names."""
    return {
        f"{split}/final_{name}": getattr(figures, name) for split, figures in metrics.splits.items() for name in FIGURES
    }


def title_of(published: PublishedManifest, run_name: str) -> str:
    """Return the name of a run whose model was published."""
    return f"{published.name} {published.version}: {run_name}"


def notes_of(published: PublishedManifest) -> str:
    """Return the verdict in words, and what it rests on."""
    decision = decision_of(published)
    return "\n\n".join(filter(None, [f"{published.version}: {headline(decision)}.", background(decision)]))


def decision_figures(published: PublishedManifest) -> dict[str, Any]:
    """Return the gate's decision, a figure each."""
    decision = decision_of(published)
    return {f"decision/{name}": getattr(decision, name) for name in DECIDED}


def tables_of(published: PublishedManifest) -> dict[str, Table]:
    """Return tables of samples, of both models as the gate compared them, of documents that moved most, of checks."""
    decision = decision_of(published)
    tables: dict[str, Table] = {
        "samples": (("prompt", "continuation"), [(one.prompt, one.continuation) for one in published.samples])
    }
    for name, (titles, *rows) in (
        ("decision/both_models", figure_rows(decision, published.version) or [()]),
        ("decision/documents_that_moved", moved_rows(decision, published.version) or [()]),
    ):
        if rows:
            tables[name] = (titles, list(rows))
    if decision.guards:
        checks = [(one.name, one.passed, one.value, one.bound, one.detail or "") for one in decision.guards]
        tables["decision/checks"] = (("check", "passed", "value", "bound", "worst"), list(checks))
    return tables
