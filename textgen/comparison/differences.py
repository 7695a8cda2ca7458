"""What differs between runs: each setting and each fact of the data, the code and the machine, in words."""

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from textgen.comparison.record import Record
from textgen.publishing.drift import compare_documents
from textgen.sections import SPLITS
from textgen.terminal import counted

KEY_DIGITS = 8
COMMIT_DIGITS = 10
UNKNOWN = "-"
MEASURED_WITH = ("protocol", "seq_length", "stride")


class Difference(BaseModel):
    """A setting, or a fact of the data, the code or the machine, in every run."""

    model_config = ConfigDict(frozen=True)

    group: str
    name: str
    values: list[str]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


def differences_of(records: Sequence[Record]) -> list[Difference]:
    """Return every fact of the runs, by group, those that are not known of any left out."""
    facts: dict[str, list[dict[str, Any]]] = {
        "data": [_data(record, records[0]) for record in records],
        "configuration": [
            {key: value if isinstance(value, str) else json.dumps(value) for key, value in record.config.items()}
            for record in records
        ],
        "code": [_code(record) for record in records],
        "machine": [_machine(record) for record in records],
    }
    rows = []
    for group, sides in facts.items():
        for name in dict.fromkeys(name for side in sides for name in side):
            values = [UNKNOWN if (value := side.get(name)) is None else str(value) for side in sides]
            if set(values) != {UNKNOWN}:
                rows.append(Difference(group=group, name=name, values=values))
    return rows


def _data(record: Record, first: Record) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if record.text is not None:
        known = record.text in record.index
        name, key = record.text.split("/")[-2:]
        facts["text"] = f"{record.index[record.text].what if known else name} ({key[:KEY_DIGITS]})"
    if (raw := record.raw) is not None:
        facts |= {f"words of {split}": f"{raw.splits[split].words:,}" for split in SPLITS}
        if record is not first and first.raw is not None and first.raw.key != raw.key:
            changes = compare_documents(first.raw, raw)
            if changes is not None:
                facts["documents"] = f"{changes.came:,} came, {changes.went:,} went, {changes.stayed:,} stayed"
        elif raw.reading is not None:
            documents = sum(split.documents or 0 for split in raw.splits.values())
            facts["documents"] = counted(documents, "document")
    if (tokens := record.tokens) is not None:
        facts["vocabulary"] = f"{tokens.vocab_size:,}"
        facts |= {f"tokens of {split}": f"{tokens.splits[split].tokens:,}" for split in SPLITS}
    if record.tokens_key is not None:
        facts["tokens key"] = record.tokens_key[:KEY_DIGITS]
    if (metrics := record.metrics) is not None:
        facts |= {f"measured with {name}": getattr(metrics, name) for name in MEASURED_WITH}
    return facts


def _code(record: Record) -> dict[str, Any]:
    environment: dict[str, Any] = record.lineage
    if record.training is not None and record.training.environment is not None:
        environment = record.training.environment.model_dump()
    commit = environment.get("git_commit")
    return {
        "commit": None if commit is None else commit[:COMMIT_DIGITS] + commit[40:],  # `+changes` may follow it
        "python": environment.get("python"),
        **environment.get("packages", {}),
    }


def _machine(record: Record) -> dict[str, Any]:
    if (training := record.training) is None:
        return {}
    return {"device": training.device, "devices": training.devices, "precision": training.precision}
