"""What a run shows in the Prefect UI: the training's progress, tables of figures and of the text, the model card.

Foreign text is shown in Markdown, where it can be escaped: a table's cells are Markdown in one of Prefect's UIs, and
plain text in the other.

It is never a reason to fail. The server may be away while a training goes on: its progress is sent from a thread that
nobody waits for.
"""

import base64
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from textgen.config import Config
from textgen.evaluation.scoring import FIGURES, Metrics, figure_in_words
from textgen.polling import every
from textgen.publishing.card import CARD_FILE, without_folded
from textgen.publishing.drift import VERDICTS, Drift, TextFigures
from textgen.publishing.markdown import inline, table
from textgen.publishing.tokenizer_fit import TokenizerFit, fit_in_words
from textgen.publishing.verdict import background, decision_of, figure_rows, headline, moved_in_markdown
from textgen.publishing.version import PublishedManifest
from textgen.terminal import seconds_in_words
from textgen.text.report import TextReport
from textgen.text.tokens import TokensManifest
from textgen.training.plan import planned_steps

log = logging.getLogger(__name__)

UPDATE_SECONDS = 5.0  # between two looks at a training's progress
URL_MARKS = "/:?=&#%@"  # that stay as they are in a link, where brackets, spaces and line ends would be markup
LEAVE_SECONDS = 10.0  # to send the last of it


class ProgressArtifact:
    """A progress bar in the UI."""

    def __init__(self, name: str) -> None:
        self.key = f"{slug(name)}-training-progress"
        self._artifact: UUID | None = None
        self._shown: tuple[Any, ...] = ()

    def show(self, percent: float, text: str) -> None:
        """Send the percentage and the text, which is Markdown, if one of them changed."""
        if self._shown == (percent, text):
            return
        if self._artifact is None:
            made = create_progress_artifact(percent, self.key, text)
            self._artifact = cast(UUID, made)  # a coroutine only where it is called in one
        else:
            update_progress_artifact(self._artifact, percent, text)
        self._shown = percent, text


class Progress:
    """How far the training of this process is, shown in the UI."""

    def __init__(self, name: str, steps: int) -> None:
        self.key, self.steps, self.step = f"{slug(name)}-weights-and-biases", steps, 0
        self.figures: dict[str, float] = {}
        self._artifact = ProgressArtifact(name)
        self._seconds_left: float | None = None
        self._url: str | None = None
        self._linked = False

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Note the figures of a step."""
        self.step = step
        self.figures = {**self.figures, **figures}
        if (speed := figures.get("train/tokens_per_second")) and "train/tokens" in figures:
            tokens_per_step = figures["train/tokens"] / step
            self._seconds_left = (self.steps - step) * tokens_per_step / speed

    def link(self, url: str | None) -> None:
        """Note where the record of the run is."""
        self._url = url if url is not None and url.startswith(("https://", "http://")) else None

    def send(self) -> None:
        """Have the server show what was noted since the last time."""
        self._artifact.show(100.0 * self.step / self.steps, self.in_words())
        if self._url is not None and not self._linked:
            link = quote(self._url, safe=URL_MARKS)
            said = "The record of the training at Weights & Biases"
            create_link_artifact(link, inline(self._url), key=self.key, description=said)
            self._linked = True

    def in_words(self) -> str:
        """Return the most important figures in words."""
        words = {
            "train/loss_nats": "loss {:.3f}", "validation/loss_nats": "validation {:.3f}",
            "train/tokens_per_second": "{:,.0f} tokens/s", "train/mfu": "{:.0%} of the matrix peak",
        }  # fmt: skip
        known = [text.format(self.figures[name]) for name, text in words.items() if name in self.figures]
        left = [f"about {seconds_in_words(self._seconds_left)} left"] if self._seconds_left else []
        return ", ".join([f"step {self.step:,} of {self.steps:,}", *left, *known])


@contextmanager
def shown(config: Config, tokens: TokensManifest) -> Iterator[Progress]:
    """Yield the progress of a training and show it every few seconds while the block runs."""
    progress = Progress(config.name, planned_steps(tokens, config))
    warned = False

    def send(at_the_end: bool) -> None:
        nonlocal warned
        try:
            progress.send()
        except Exception as error:  # whatever the server or the way to it does: a training goes on
            if not warned:
                log.warning("the progress could not be shown: %s", error)
            warned = True

    with every(UPDATE_SECONDS, send, "training-progress", LEAVE_SECONDS):
        yield progress


def show_model(published: PublishedManifest, metrics: Metrics) -> None:
    """Show the verdict, the metrics beside those that the gate compared them with, and the model card."""
    name, decision = slug(published.name), decision_of(published)
    version, verdict = f"{published.name} {published.version}", headline(decision)
    try:
        said = inline(f"Evaluation of {version}: {verdict}. {background(decision)}")
        create_table_artifact(compare(published, metrics), f"{name}-evaluation", said)
        if moved := moved_in_markdown(decision, published.version):
            said = inline(f"The documents of test on which {version} moved most, both ways")
            create_markdown_artifact(moved, f"{name}-documents-that-moved", said)
        said = inline(f"Published version {version}: {verdict}.")
        create_markdown_artifact(card(published.folder), f"{name}-model-card", said)
    except Exception as error:  # the model is published all the same
        log.warning("the model could not be shown: %s", error)


def show_text(name: str, report: TextReport) -> None:
    """Show what the splits of a text hold, and how much of them stands in train."""
    rows = [
        [split, f"{one.documents:,}", f"{one.words:,}", f"{inline(one.longest.name)}, {one.longest.words:,}",
         "-" if one.overlap is None else f"{one.overlap:.1%}",
         "; ".join(f"{inline(found.name)} {found.share:.0%}" for found in one.worst) or "-"]
        for split, one in report.splits.items()
    ]  # fmt: skip
    titles = ["split", "documents", "words", "longest, in words", "stands in train", "most of it"]
    counts = ", ".join(f"{one.documents:,} in {split}" for split, one in report.splits.items())
    try:
        create_markdown_artifact(table(titles, rows), f"{slug(name)}-text", f"The text: documents, {counts}")
    except Exception as error:  # the training goes on
        log.warning("the text could not be shown: %s", error)


def show_drift(name: str, drift: Drift, fit: TokenizerFit | None = None) -> None:
    """Show the figures of new text beside those of the champion's, the verdict, and how a kept tokenizer fits."""
    verdict = f"The text is {VERDICTS[drift.verdict]} {drift.champion}"
    said = [verdict, *drift.reasons, *([f"tokenizer: {fit_in_words(fit)}"] if fit is not None else [])]
    rows = [
        {"figure": figure.replace("_", " "), f"text of {drift.champion}": _estimate(drift.last, figure),
         "new text": _estimate(drift.new, figure)}
        for figure in TextFigures.model_fields
    ]  # fmt: skip
    try:
        create_table_artifact(rows, f"{slug(name)}-text-drift", inline("; ".join(said)))
    except Exception as error:  # the training goes on
        log.warning("the drift could not be shown: %s", error)


def compare(published: PublishedManifest, metrics: Metrics) -> list[dict[str, str]]:
    """Return a row a metric: of this version, and of the champion where the gate scored both on the same documents."""
    if beside := figure_rows(decision_of(published), published.version):
        return as_rows(beside)
    return [
        {"split": split, "metric": words, published.version: figure_in_words(metric, getattr(figures, metric))}
        for split, figures in metrics.splits.items()
        for metric, words in FIGURES.items()
    ]


def as_rows(table: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Return a table, titles first, as the server takes it: its cells are Markdown."""
    return [dict(zip(table[0], map(inline, row), strict=True)) for row in table[1:]]


def card(folder: Path) -> str:
    """Return the model card of a published folder, as the UI can show it: it reaches no file and folds nothing."""
    _, _, body = (folder / CARD_FILE).read_text("utf-8").partition("\n---\n")
    body = without_folded(body)
    for picture in folder.glob("*.png"):
        data = base64.b64encode(picture.read_bytes()).decode()
        body = body.replace(f"]({picture.name})", f"](data:image/png;base64,{data})")
    return body


def slug(name: str) -> str:
    """Return a name as an artifact's key may be: lowercase letters, digits and dashes."""
    return "".join(character if character.isalnum() and character.isascii() else "-" for character in name.lower())


def _estimate(figures: TextFigures | None, name: str) -> str:
    estimate = getattr(figures, name, None)
    return "-" if estimate is None else f"{estimate.value:.4g} ± {estimate.standard_error:.2g}"
