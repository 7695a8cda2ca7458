"""The pictures of a model card: loss while training, and facts of the data. The same figures give the same bytes.

They have a background of their own, so that they read alike on a light page and on a dark one.
"""

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from textgen.publishing.curves import read_curve
from textgen.terminal import counted
from textgen.text.tokens import TokensManifest, count_ids, load_documents
from textgen.training.checkpoint import CheckpointManifest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INCHES, TWO_INCHES = (6, 4), (6, 7.5)  # of one panel, and of two: one below the other, for a phone's width
DPI = 120
BACKGROUND, INK = "#fbfaf7", "#333333"
COLORS = {"train": "#2f6fb5", "validation": "#d1641c", "test": "#3f9150"}
STYLE: Any = {
    "font.size": 12, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.facecolor": BACKGROUND, "axes.spines.top": False, "axes.spines.right": False,
    "grid.color": INK, "grid.alpha": 0.2,
}  # fmt: skip


def plot_training(checkpoint: CheckpointManifest, path: Path) -> None:
    """Draw the loss on train and validation over the tokens trained on, and mark the step that was published."""
    figure, (axes,) = new_figure(INCHES, 1)
    curve = read_curve(checkpoint.folder, checkpoint)
    for points, split, label, width, mark in (
        (curve.train, "train", "train, at each logged step", 1.0, "."),
        (curve.validation, "validation", "validation", 1.5, "o"),
    ):
        places, losses = [one.tokens for one in points], [one.loss for one in points]
        axes.plot(places, losses, color=COLORS[split], label=label, linewidth=width, marker=mark, markersize=4)
    best = next(point for point in checkpoint.curve if point.step == checkpoint.best_step)
    axes.plot(
        best.tokens, best.loss_nats, "o", color=COLORS["validation"], markersize=9, markeredgecolor=INK,
        label=f"published: step {best.step:,}",
    )  # fmt: skip
    axes.set(title="Loss while training", xlabel="tokens trained on", ylabel="loss (nats a token)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params("x", nbins=5)  # they are long
    axes.legend(frameon=False)
    save(figure, path)


def plot_data(tokens: TokensManifest, path: Path) -> None:
    """Draw how many words the documents of each split have, and how often the tokens of train occur, by their rank."""
    figure, (lengths, ranks) = new_figure(TWO_INCHES, 2)
    for split in tokens.splits:
        words_D = load_documents(tokens, split)["words"].numpy()
        if (some := words_D[words_D > 0]).size:
            words, counts = np.unique(some, return_counts=True)  # few points, however many documents there are
            shares = np.cumsum([0, *counts]) / len(some)
            label = f"{split}, {counted(len(some), 'document')}"
            lengths.step([words[0], *words], shares, where="post", color=COLORS[split], label=label)
    lengths.set(title="Words in a document", xlabel="words", ylabel="share of documents with no more", xscale="log")
    lengths.set_ylim(0, 1)
    lengths.legend(frameon=False)
    counts_V = count_ids(tokens, "train")
    sorted_V = np.sort(counts_V.numpy())[::-1]
    seen = sorted_V[sorted_V > 0]
    ranks.plot(np.arange(1, len(seen) + 1), seen, color=COLORS["train"])
    ranks.set(title="Tokens of train by rank", xlabel="rank", ylabel="occurrences", xscale="log", yscale="log")
    for axis in (lengths.xaxis, ranks.xaxis, ranks.yaxis):
        _label_in_full(axis)
    save(figure, path)


def _label_in_full(axis: "Axis") -> None:
    """Label a logarithmic axis with whole numbers, between the powers of ten too where there are few of these."""
    from matplotlib.ticker import LogFormatter

    class InFull(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:,.12g}" if super().__call__(x, pos) else ""

    axis.set_major_formatter(InFull())
    axis.set_minor_formatter(InFull())


def new_figure(inches: tuple[float, float], panels: int, share_y: bool = False) -> tuple["Figure", "list[Axes]"]:
    """Return a figure in our style with its panels, one below the other."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=inches, dpi=DPI, layout="constrained", facecolor=BACKGROUND)
        axes = list(figure.subplots(panels, 1, squeeze=False, sharey=share_y)[:, 0])
        for panel in axes:
            panel.grid()
        return figure, axes


def save(figure: "Figure", file: Path | IO[bytes]) -> None:
    """Write a figure as PNG."""
    figure.savefig(file, metadata={"Software": None}, facecolor=BACKGROUND)  # its version is no part of the bytes
