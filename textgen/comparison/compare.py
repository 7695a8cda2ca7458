"""Runs side by side: what differs between them, their figures with paired intervals, their curves and samples.

The first of the runs is the one that the others are compared with, by the gate's own code on the documents that both
were scored on.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from textgen.comparison.differences import Difference, differences_of
from textgen.comparison.paired import Paired, pair
from textgen.comparison.record import Record, read_record
from textgen.evaluation.scoring import SplitMetrics
from textgen.publishing.curves import Curve, read_curve
from textgen.publishing.index import read_index
from textgen.publishing.runs import Run, Training
from textgen.sections import HELD_OUT
from textgen.storage import Storage
from textgen.text.tokenizer import TOKENIZER_FILE
from textgen.text.tokens import TokensManifest


class Side(BaseModel):
    """One run."""

    model_config = ConfigDict(frozen=True)

    name: str
    when: datetime | None
    training: str | None  # folder
    version: str | None
    flow_runs: list[str]
    protocol: str | None
    splits: dict[str, SplitMetrics]
    cost: dict[str, float | None]
    curve: Curve | None
    promoted: bool | None
    gate: str | None  # what the gate said when it compared this run with the first


class Sampled(BaseModel):
    """What each run wrote after a prompt; null where it was not asked."""

    model_config = ConfigDict(frozen=True)

    prompt: str
    continuations: list[str | None]


class Comparison(BaseModel):
    """Runs side by side."""

    model_config = ConfigDict(frozen=True)

    runs: list[Side]
    warnings: list[str]
    differences: list[Difference]
    paired: dict[str, list[Paired | None]]  # by split, of each run but the first
    curve_unit: str
    samples: list[Sampled]


def compare_runs(runs: Sequence[Run], storage: Storage) -> Comparison:
    """Return the runs side by side, each against the first.

    Raises:
        Damaged: a record of a run is not what was written.
        StorageUnavailable: the remote root did not answer.
    """
    index = read_index(storage)
    records = [read_record(run, storage, index) for run in runs]
    first, others = records[0], records[1:]
    curves, curve_unit, unlike = _curves(records)
    return Comparison(
        runs=[_side(record, first, curve, storage) for record, curve in zip(records, curves, strict=True)],
        warnings=list(dict.fromkeys([*(line for other in others for line in _warnings(first, other)), *unlike])),
        differences=differences_of(records),
        paired={split: [pair(first, other, split) for other in others] for split in HELD_OUT},
        curve_unit=curve_unit,
        samples=_samples(records),
    )


def _side(record: Record, first: Record, curve: Curve | None, storage: Storage) -> Side:
    run, training, published = record.run, record.training, record.published
    paths = {_path(folder, storage) for folder in (run.training, run.version) if folder is not None}
    entries = [record.index[path] for path in sorted(paths) if path in record.index]
    flow_runs = {one for entry in entries for one in entry.flow_runs}
    if (publisher := record.lineage.get("flow_run")) is not None:
        flow_runs.add(publisher)
    return Side(
        name=run.name,
        when=min((entry.when for entry in entries), default=None),
        training=None if run.training is None else _path(run.training, storage),
        version=None if run.version is None else _path(run.version, storage),
        flow_runs=sorted(flow_runs),
        protocol=None if record.metrics is None else record.metrics.protocol,
        splits={} if record.metrics is None else record.metrics.splits,
        cost={} if training is None else _cost(training),
        curve=curve,
        promoted=None if published is None else published.promoted,
        gate=_gate(record, first),
    )


def _path(folder: Path, storage: Storage) -> str:
    """Return a folder's path under the root, or as it is where it is elsewhere."""
    with suppress(ValueError):
        return storage.name(folder)
    return str(folder)


def _cost(training: Training) -> dict[str, float | None]:
    speed = training.speed
    return {
        "parameters": training.parameters, "steps": training.steps, "best step": training.best_step,
        "best on validation, nats a token": training.best_loss_nats,
        "tokens trained": training.tokens_trained, "seconds": training.train_seconds,
        "tokens a second": speed.get("tokens_per_second"),
        "peak memory, MiB": None if (peak := speed.get("memory_peak_bytes")) is None else peak / 2**20,
    }  # fmt: skip


def _gate(record: Record, first: Record) -> str | None:
    """Return what the gate said of the run, if it compared it with the first."""
    ours, theirs = record.published, first.published
    if ours is None or theirs is None or ours.decision is None:
        return None
    if (ours.name, ours.decision.opponent) != (theirs.name, theirs.version):
        return None
    return f"{'promoted' if ours.promoted else 'not promoted'}: {ours.reason}"


def _warnings(first: Record, other: Record) -> list[str]:
    """Return what has to be known before the figures of two runs are read side by side."""
    ours, theirs = first.run.name, other.run.name
    lines = []
    elsewhere = [split for split in HELD_OUT if not first.same_text(other, split)]
    if elsewhere:
        lines.append(
            f"{ours} and {theirs} were scored on different text ({' and '.join(elsewhere)}): "
            "their losses do not compare"
        )
    for record in (first, other):
        if record.metrics is None:
            lines.append(f"{record.run.name} was not evaluated, or in an older format: it has curves and no figures")
    if first.metrics is None or other.metrics is None:
        return lines
    if first.metrics.protocol != other.metrics.protocol:
        lines.append(
            f"{ours} was measured by {first.metrics.protocol} and {theirs} by {other.metrics.protocol}: "
            "their figures do not compare"
        )
    elif not first.measured_like(other):
        lines.append(
            f"{ours} was measured with a stride of {first.metrics.stride} and {theirs} of {other.metrics.stride}: "
            "their figures do not compare"
        )
    elif not elsewhere and first.sha256.get(TOKENIZER_FILE) != other.sha256.get(TOKENIZER_FILE):
        lines.append(f"{ours} and {theirs} have different tokenizers: compare bits a byte, not nats a token")
    return lines


def _curves(records: Sequence[Record]) -> tuple[list[Curve | None], str, list[str]]:
    """Return the curves, in bits a byte where the tokenizers differ, their unit, and what has to be said of them."""
    curves = [
        None if record.training is None or record.run.training is None
        else read_curve(record.run.training, record.training)
        for record in records
    ]  # fmt: skip
    drawn = [record for record in records if record.training is not None]
    gone = [record.run.name for record in records if record.training is None]
    lines = [f"the training of {name} is gone: it has no curves" for name in gone]
    if len({record.sha256.get(TOKENIZER_FILE) for record in drawn}) <= 1:
        return curves, "nats a token", lines
    if any(record.tokens is None for record in drawn):
        return curves, "nats a token", [*lines, "the curves are of different tokenizers: they do not compare"]
    scaled = [
        None if curve is None or record.tokens is None
        else curve.scaled(*(_bits_a_byte(record.tokens, split) for split in ("train", "validation")))
        for record, curve in zip(records, curves, strict=True)
    ]  # fmt: skip
    return scaled, "bits a byte", lines


def _bits_a_byte(tokens: TokensManifest, split: str) -> float:
    """Return the bits a byte that a nat a token is."""
    counts = tokens.splits[split]
    return counts.tokens / (counts.text_bytes * math.log(2))


def _samples(records: Sequence[Record]) -> list[Sampled]:
    written = [
        {sample.prompt: sample.continuation for sample in record.published.samples} if record.published else {}
        for record in records
    ]
    prompts = dict.fromkeys(prompt for side in written for prompt in side)
    return [Sampled(prompt=prompt, continuations=[side.get(prompt) for side in written]) for prompt in prompts]
