"""A published version: its manifest, the decision about it, and its files."""

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from textgen.config import VERSION
from textgen.errors import Damaged
from textgen.files import Manifest, read_json
from textgen.model.find import LINEAGE_FILE
from textgen.terminal import brief

METRICS_FILE = "metrics.json"
CLAIM_FILE = ".claim"  # in a remote root, of the machine that makes a version
PROBE_FILE = "probe.json"  # some ids of validation and their nats: who runs the model can see whether it runs right
DOCUMENTS_FILE = "documents.json"  # in a published folder, beside the metrics: the documents of each split


class Guard(BaseModel):
    """What a model must hold whatever it is compared with: `value` on the right side of `bound`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    passed: bool
    value: float | None  # None where it is no finite number, or there was nothing to measure
    bound: float
    detail: str | None = None  # what was worst
    always: bool = False  # whether it counts under every policy, and not under `gate` alone

    def in_words(self) -> str:
        """Return the guard's outcome in words."""
        value = "no figure" if self.value is None else _figure(self.value)
        detail = "" if self.detail is None else f" ({self.detail})"
        return f"{self.name}: {value}, bound {_figure(self.bound)}{detail}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() else f"{value:.4g}"


class Figures(BaseModel):
    """What one model makes of the documents of a split that were compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss_nats: float | None  # a token; null where the tokenizers differ
    bits_per_byte: float | None  # null where unknown words leave none


class Beside(BaseModel):
    """Two models on the same documents of a split, scored by the same protocol."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    documents: int
    challenger: Figures
    opponent: Figures


class Moved(BaseModel):
    """A document of test on which the two models are far apart, and the loss of each, in the decision's unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    opening: str  # its first words
    words: int
    challenger: float
    opponent: float


class Decision(BaseModel):
    """Whether a version was promoted, why, and the comparison that said so.

    The figures of the comparison are null where none was made: under `publish.policy` always and never. It is the one
    record of two models side by side: whatever shows them together shows what is here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    promoted: bool
    reason: str
    opponent: str | None = None  # the champion's version, or `unigram`, which the first model has to beat
    protocol: str | None = None
    unit: Literal["nats a token", "bits a byte"] | None = None
    documents: int | None = None  # of the test split, that were compared
    challenger: float | None = None  # mean loss on the test split, in `unit`
    champion: float | None = None  # the opponent's
    difference: float | None = None  # challenger less opponent: below zero is better
    low: float | None = None  # a bound of the difference that holds with `required_confidence`
    high: float | None = None  # the other bound, which holds as surely
    confidence: float | None = None  # that the challenger is better by more than `min_improvement`
    min_improvement: float | None = None  # in `unit`
    required_confidence: float | None = None
    guards: list[Guard] = []
    left_out: list[str] = []  # documents of test that the opponent was trained on much of
    left_out_of_validation: list[str] = []  # and of validation
    # Versions from before these were kept have the figures above alone:
    scored_again: bool = False  # the champion, because it was measured on another text or by another protocol
    splits: dict[str, Beside] = {}  # both models on test and on validation
    moved: list[Moved] = []  # documents of test, from the one that became better by most to the one that became worse


class Sample(BaseModel):
    """A prompt and what the model wrote after it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    continuation: str


class PublishedManifest(Manifest):
    """A published version and why it was promoted or not."""

    NAMES = ("key", "name", "version", "tokens_key")

    name: str
    version: str = Field(pattern=rf"^{VERSION.pattern}$")
    promoted: bool
    reason: str
    decision: Decision | None = None  # of versions from before there was a gate
    checkpoint_sha256: str
    tokens_key: str
    raw_sha256: dict[str, str]
    bits_per_byte: float | None  # on validation
    samples: list[Sample]
    sha256: dict[str, str]

    def sha256_by_file(self) -> dict[str, str]:
        return self.sha256

    def says_the_same(self, stored: "Manifest") -> bool:
        """Return whether both are of one version: a later policy may promote it, and what is stored stays."""
        decided = {"promoted", "reason", "decision"}
        return super().says_the_same(
            stored.model_copy(update={name: getattr(self, name) for name in decided})
            if isinstance(stored, PublishedManifest) else stored
        )  # fmt: skip


def published_stride(folder: Path) -> int | None:
    """Return the stride that a published model was measured with, None if it was by another protocol than `sliding`.

    Raises:
        Damaged: the record of its metrics cannot be read.
    """
    if not (folder / METRICS_FILE).exists():
        return None
    stored = read_json(folder / METRICS_FILE)
    if stored.get("protocol") != "sliding":
        return None
    stride = stored.get("stride")
    if type(stride) is not int or stride < 1:
        raise Damaged(f"{folder / METRICS_FILE} is damaged: stride={brief(stride)} is no number of tokens")
    return stride


def read_probe(folder: Path) -> tuple[list[int], list[float]] | None:
    """Return some ids and the nats of all but the first, as the evaluation measured them; None of older versions.

    Raises:
        Damaged: the file is not what publishing writes.
    """
    if not (folder / PROBE_FILE).exists():
        return None
    stored = read_json(folder / PROBE_FILE)
    ids, nats = stored.get("ids"), stored.get("nats")
    if (
        isinstance(ids, list) and isinstance(nats, list) and len(ids) == len(nats) + 1 > 1
        and all(type(id) is int for id in ids) and all(isinstance(one, float) for one in nats)
    ):  # fmt: skip
        return ids, nats
    raise Damaged(f"{folder / PROBE_FILE} is damaged: `ids` and `nats` are no lists of numbers")


def read_name(folder: Path) -> tuple[str, str] | None:
    """Return the name and the version that a published folder says it has, None for a folder of another kind."""
    if not (folder / PublishedManifest.FILE).exists():
        return None
    manifest = read_json(folder / PublishedManifest.FILE)
    name, version = manifest.get("name"), manifest.get("version")
    return (name, version) if isinstance(name, str) and isinstance(version, str) else None


def measured_on(published: PublishedManifest) -> tuple[str | None, str | None]:
    """Return the sha256 of the validation text that a version was measured on, and the protocol.

    The figures of two versions can stand together only where these are the same.
    """
    protocol = None
    with suppress(Damaged):  # of which `models show` says so
        protocol = read_json(published.folder / METRICS_FILE).get("protocol")
    return published.raw_sha256.get("validation"), protocol


def figures_on_test(folder: Path) -> dict[str, float | None]:
    """Return the perplexity of a token and the bits a byte of the test split, where they were measured."""
    if not (folder / METRICS_FILE).exists():
        return {}
    splits = read_json(folder / METRICS_FILE).get("splits")
    found = splits.get("test") if isinstance(splits, dict) else None
    if not isinstance(found, dict):
        raise Damaged(f"{folder / METRICS_FILE} is damaged: it has no splits.test")
    return {name: found.get(name) for name in ("token_perplexity", "bits_per_byte")}


def read_lineage(folder: Path, kind: str, field: str) -> Any:
    """Return what the lineage of a published folder says of raw, tokens, checkpoint or evaluation.

    Raises:
        Damaged: it does not say.
    """
    record = read_json(folder / LINEAGE_FILE).get(kind)
    if not isinstance(record, dict) or field not in record:
        raise Damaged(f"{folder / LINEAGE_FILE} is damaged: it has no {kind}.{field}")
    return record[field]
