"""What there is to read of a run: its training, its version, its evaluation, its tokens and its text."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from textgen.config import RECORDED, Config
from textgen.errors import Damaged
from textgen.evaluation.scoring import Documents, Metrics
from textgen.files import Manifest, read_json
from textgen.publishing.contenders import read_scores, score_challenger, spread_of
from textgen.publishing.gate import Scores
from textgen.publishing.index import Index
from textgen.publishing.runs import Run, Training, read_training
from textgen.publishing.version import DOCUMENTS_FILE, LINEAGE_FILE, METRICS_FILE, PublishedManifest
from textgen.sections import HELD_OUT
from textgen.settings import flat
from textgen.storage import Storage
from textgen.text.corpus import RawManifest
from textgen.text.tokenizer import TOKENIZER_FILE
from textgen.text.tokens import TokensManifest
from textgen.training.figures import LOG_FILE


@dataclass(frozen=True)
class Record:
    """What there is to read of a run."""

    run: Run
    training: Training | None
    published: PublishedManifest | None
    lineage: dict[str, Any]
    metrics: Metrics | None
    documents: dict[str, Documents] | None
    text: str | None  # the folder of the raw text, under the root
    raw: RawManifest | None
    tokens: TokensManifest | None
    index: Index

    @property
    def sha256(self) -> dict[str, str]:
        made = self.published or self.training
        return {} if made is None else made.sha256

    @property
    def tokens_key(self) -> str | None:
        made = self.published or self.training
        return None if made is None else made.tokens_key

    @property
    def config(self) -> dict[str, Any]:
        """The configuration by `section.key`: what its commit did not know yet is as it is by default."""
        stored = self.training.config if self.training is not None else self.lineage.get("config", {})
        return {**flat(Config().model_dump(mode="json", include=RECORDED)), **flat(stored)}

    def measured_like(self, other: "Record") -> bool:
        """Return whether both were scored alike: by one protocol and, in the same context, with the same stride."""
        ours, theirs = self.metrics, other.metrics
        if ours is None or theirs is None or ours.protocol != theirs.protocol:
            return False
        return ours.seq_length != theirs.seq_length or ours.stride == theirs.stride

    def scores(self) -> Scores | None:
        """Return what the run made of each document, as the gate compares it; None where it was not evaluated."""
        if self.metrics is None or self.documents is None or TOKENIZER_FILE not in self.sha256:
            return None
        spread = {split: spread_of(self.metrics.splits[split]) for split in HELD_OUT}
        return Scores(self.run.name, self.sha256[TOKENIZER_FILE], self.documents, spread)

    def same_text(self, other: "Record", split: str) -> bool:
        """Return whether both runs were scored on the same text."""
        if self.tokens_key == other.tokens_key:
            return True
        ours, theirs = (record._text_sha256(split) for record in (self, other))
        return ours is not None and ours == theirs

    def _text_sha256(self, split: str) -> str | None:
        if self.published is not None:
            return self.published.raw_sha256.get(split)
        return None if self.tokens is None else self.tokens.raw_sha256.get(split)


def read_record(run: Run, storage: Storage, index: Index) -> Record:
    """Read a run, brought from the remote root as far as it is there.

    Raises:
        Damaged: a record of it is not what was written.
        StorageUnavailable: the remote root did not answer.
    """
    training = None if run.training is None else read_training(run.training)
    published, lineage = None, {}
    if run.version is not None:
        published, lineage = PublishedManifest.parse(run.version), read_json(run.version / LINEAGE_FILE)
    metrics, documents = _read_scores(run, storage, index)
    made = published or training
    assert made is not None
    tokens = raw = None
    with suppress(Damaged):  # they may be large: they are not brought
        tokens = TokensManifest.parse(storage.processed(made.tokens_key))
    entry = index.get(storage.name(storage.processed(made.tokens_key)))
    text = entry.text if entry is not None else lineage.get("raw", {}).get("folder")
    with suppress(Damaged):
        raw = RawManifest.parse(storage.inside(text))
    if run.training is not None:
        storage.bring_file(run.training / LOG_FILE)
    return Record(run, training, published, lineage, metrics, documents, text, raw, tokens, index)


def _read_scores(run: Run, storage: Storage, index: Index) -> tuple[Metrics | None, dict[str, Documents] | None]:
    """Return how a run was evaluated: as it was published, else as its training was last.

    An evaluation is as old as the index has it; one that no run noted, as old as its file here.
    """
    if run.version is not None and (run.version / DOCUMENTS_FILE).exists():
        with suppress(Damaged, ValidationError):  # of an older format
            metrics = Metrics.model_validate(read_json(run.version / METRICS_FILE))
            return metrics, read_scores(run.version / DOCUMENTS_FILE)
    if run.training is None:
        return None, None
    home = run.training / "evaluations"
    for folder in storage.folders(home, "*"):
        storage.bring(folder, Metrics)
    noted = {
        path.split("/")[-1]: entry.when
        for path, entry in index.items()
        if entry.stage == "evaluate" and (entry.made_of or "").split("/")[-1] == run.training.name
    }
    made = {
        file.parent: noted.get(file.parent.name) or datetime.fromtimestamp(file.stat().st_mtime, UTC)
        for file in home.glob(f"*/{Manifest.FILE}")
    }
    for folder in sorted(made, key=made.__getitem__, reverse=True):
        with suppress(Damaged):
            metrics = Metrics.read(folder)
            return metrics, score_challenger(metrics, "").splits
    return None, None
