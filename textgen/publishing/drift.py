"""Data drift: new text beside that of the version in use, before a training, by figures that need no training."""

import math
from array import array
from collections.abc import Iterable, Sequence, Set
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict

from textgen.config import Config, EvaluationConfig
from textgen.errors import Damaged
from textgen.evaluation.evaluate import evaluate_rows
from textgen.files import Manifest, content_key
from textgen.model.device import choose_device, share_cores
from textgen.model.pretrained import LoadedModel, load_model
from textgen.publishing.registry import find_champion, trained_text
from textgen.publishing.version import PublishedManifest
from textgen.sections import SPLITS
from textgen.storage import Storage
from textgen.terminal import counted
from textgen.text.corpus import RawManifest, list_documents, read_parts, read_rows
from textgen.text.documents import Part, by_document

DRIFT_VERSION = 1  # of the figures; a change makes every drift key new
SAMPLE_BYTES = 1 << 17  # of a validation split, spread over its documents, that the champion reads
BATCH_SIZE = 16

# A figure has moved when the larger of new and last is over this many times the smaller, and they are further apart
# than two draws of one kind of text are likely to be.
BOUNDS = {"words_per_document": 1.5, "word_coverage": 1.02, "bytes_per_token": 1.05, "bits_per_byte": 1.05}
STANDARD_ERRORS = 3.0

Verdict = Literal["same", "shifted", "not compared"]
VERDICTS = {"same": "like that of", "shifted": "different from that of", "not compared": "not compared with that of"}


class Estimate(BaseModel):
    """A ratio of two sums over documents, and the standard error that comes of there being so few of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    standard_error: float


class TextFigures(BaseModel):
    """What a text is like, with the champion's tokenizer and model, and the words of the text it was trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    words_per_document: Estimate  # of train
    word_coverage: Estimate  # share of validation's words that the champion's train split has
    bytes_per_token: Estimate  # of a sample of validation
    bits_per_byte: Estimate | None  # of that sample; None where the champion's vocabulary lacks words of it


class Changes(BaseModel):
    """The documents of local files that came and went since the champion's text, known by their words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    came: int
    went: int
    stayed: int
    moved: int  # of those that stayed, into another split
    last_cut_words: int | None = None  # of the documents that long files were cut into; None: they were whole
    new_cut_words: int | None = None


class Drift(Manifest):
    """New text against the champion's: the figures of both and a verdict."""

    champion: str
    raw_key: str
    verdict: Verdict
    reasons: list[str]
    last: TextFigures | None = None
    new: TextFigures | None = None
    changes: Changes | None = None  # None where one of the texts is not of local files

    def sha256_by_file(self) -> dict[str, str]:
        return {}


def measure_drift(raw: RawManifest, config: Config, storage: Storage) -> Drift | None:
    """Compare the text with that of the version in use; None where there is no such version, or its text is this one.

    A comparison is made once and kept in data/drift.
    """
    storage.bring(raw.folder, RawManifest)
    if (folder := find_champion(config, storage)) is None:
        return None
    try:
        champion = PublishedManifest.parse(folder)
    except Damaged:  # which the publish stage names and sets aside
        return None
    if champion.raw_sha256 == {split: text.sha256 for split, text in raw.splits.items()}:
        return None
    key = content_key(DRIFT_VERSION, champion.checkpoint_sha256, raw.key)
    return storage.build(storage.drift(key), Drift, lambda _: _compare(key, champion, raw, config, storage))


def _compare(key: str, champion: PublishedManifest, raw: RawManifest, config: Config, storage: Storage) -> Drift:
    share_cores()
    try:
        last_raw = trained_text(champion, storage)
        loaded = load_model(champion.folder, choose_device(config.training.device))
    except Damaged as damage:
        return Drift(key=key, champion=champion.version, raw_key=raw.key, verdict="not compared", reasons=[str(damage)])
    known = known_words(last_raw, (last_raw, raw))
    last, new = (text_figures(text, known, loaded) for text in (last_raw, raw))
    reasons = judge(last, new)
    return Drift(
        key=key, champion=champion.version, raw_key=raw.key, verdict="shifted" if reasons else "same", reasons=reasons,
        last=last, new=new, changes=compare_documents(last_raw, raw),
    )  # fmt: skip


def compare_documents(last: RawManifest, new: RawManifest) -> Changes | None:
    """Return which documents came and went, None where a text has no list of its documents."""
    hashes = [_hashes_by_split(raw) for raw in (last, new)]
    if not all(hashes):
        return None
    last_D, new_D = (np.unique(np.concatenate(list(found.values()))) for found in hashes)
    stayed = len(np.intersect1d(last_D, new_D, assume_unique=True))
    in_place = sum(len(np.intersect1d(hashes[0][split], hashes[1][split], assume_unique=True)) for split in SPLITS)
    return Changes(
        came=len(new_D) - stayed, went=len(last_D) - stayed, stayed=stayed, moved=max(0, stayed - in_place),
        last_cut_words=_cut_words(last), new_cut_words=_cut_words(new),
    )  # fmt: skip


def _cut_words(raw: RawManifest) -> int | None:
    return raw.reading.cut_words if raw.reading is not None and raw.reading.cut else None


def _hashes_by_split(raw: RawManifest) -> dict[str, np.ndarray]:
    """Return the hashes of each split's documents, nothing where a text has no list of them."""
    lists = {str(split): list_documents(raw, split) for split in SPLITS}
    return {split: np.unique(one.column("hash").to_numpy()) for split, one in lists.items() if one is not None}


def changes_in_words(drift: Drift) -> str:
    """Return which documents came and went, as the end of a line; nothing where that is not known."""
    if (changes := drift.changes) is None:
        return ""
    moved = f", {changes.moved:,} of them into another split" if changes.moved else ""
    came = f"; {counted(changes.came, 'document')} came, {changes.went:,} went, {changes.stayed:,} stayed{moved}"
    last, new = (
        "whole" if words is None else f"cut into documents of about {words:,} words"
        for words in (changes.last_cut_words, changes.new_cut_words)
    )  # fmt: skip
    other = f"; long files were {last} before and are {new} now: their text is in other documents"
    return came if last == new else came + other


def known_words(last: RawManifest, texts: Sequence[RawManifest]) -> Set[str]:
    """Return the words of the validation splits of `texts` that stand in the train split of `last`."""
    wanted = {word for raw in texts for row in read_rows(raw, "validation") for word in row.split()}
    known: set[str] = set()
    for row in read_rows(last, "train"):
        known |= wanted.intersection(row.split())
    return known


def text_figures(raw: RawManifest, known: Set[str], loaded: LoadedModel) -> TextFigures:
    """Return what a text is like; `known` are the words of its validation that the model was trained on."""
    lengths, total, covered = array("q"), array("q"), array("q")  # words of each document
    for texts in by_document(read_parts(raw, "train")):
        lengths.append(sum(len(text.split()) for text in texts))
    for texts in by_document(read_parts(raw, "validation")):
        words = covering = 0
        for text in texts:
            words += len(found := text.split())
            covering += sum(word in known for word in found)
        total.append(words)
        covered.append(covering)
    windows = EvaluationConfig(protocol="sliding", stride=loaded.seq_length, batch_size=BATCH_SIZE)
    read = evaluate_rows(loaded, sample(read_parts(raw, "validation"), raw.splits["validation"].text_bytes), windows)
    bits_D = read.documents.nats / math.log(2)
    has_bits = read.metrics.bits_per_byte is not None
    return TextFigures(
        words_per_document=estimate(lengths, np.ones(len(lengths))),
        word_coverage=estimate(covered, total),
        bytes_per_token=estimate(read.documents.bytes, read.documents.tokens),
        bits_per_byte=estimate(bits_D, read.documents.bytes) if has_bits else None,
    )


def estimate(numerators: ArrayLike, denominators: ArrayLike) -> Estimate:
    """Return the sum of the one over the sum of the other, its error by linearization (Cochran 1977, 6.4)."""
    above_D, below_D = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    value, count = above_D.sum() / max(1.0, below_D.sum()), len(above_D)
    spread = np.sum((above_D - value * below_D) ** 2) * count / (count - 1) if count > 1 else math.inf
    return Estimate(value=value, standard_error=math.sqrt(spread) / max(1.0, below_D.sum()))


def sample(parts: Iterable[Part], text_bytes: int, most_bytes: int = SAMPLE_BYTES) -> list[str]:
    """Return parts of documents spread over a text of `text_bytes`, of `most_bytes` at most."""
    every = max(1, math.ceil(text_bytes / most_bytes))
    taken, left = [], most_bytes
    for texts in islice(by_document(parts), 0, None, every):
        for row in texts:
            part = row.encode()[:left].decode(errors="ignore")
            taken.append(part)
            left -= len(part.encode())
            if len(part) < len(row):
                return taken
    return taken


def judge(last: TextFigures, new: TextFigures) -> list[str]:
    """Return in words each figure that moved."""
    return [
        f"{name} {_shown(getattr(new, name))}, {_shown(getattr(last, name))} before"
        for name, bound in BOUNDS.items()
        if _moved(getattr(last, name), getattr(new, name), bound)
    ]


def _moved(last: Estimate | None, new: Estimate | None, bound: float) -> bool:
    if last is None or new is None:
        return last is not new
    low, high = sorted((last.value, new.value))
    return high > bound * low and high - low > STANDARD_ERRORS * math.hypot(last.standard_error, new.standard_error)


def _shown(figure: Estimate | None) -> str:
    return "-" if figure is None else f"{figure.value:.4g}"
