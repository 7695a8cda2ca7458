"""The curves of runs side by side as one picture, for a page that shows pictures alone, as the Prefect UI does."""

import io

from textgen.comparison.compare import Comparison
from textgen.publishing.curves import smooth
from textgen.publishing.plots import TWO_INCHES, new_figure, save

RUN_COLORS = ("#0062a3", "#c24e00", "#00785a", "#9c4a86", "#7a6a00", "#4b4f57")  # as the page's, on a light background


def plot_curves(comparison: Comparison) -> bytes:
    """Return a PNG of the losses on train, over tokens and over seconds: the points, and a line through their means."""
    figure, panels = new_figure(TWO_INCHES, 2, share_y=True)
    for panel, axis in zip(panels, ("tokens", "seconds"), strict=True):
        panel.set(title=f"Loss on train over {axis}", xlabel=axis, ylabel=f"loss, {comparison.curve_unit}")
        for side, color in zip(comparison.runs, RUN_COLORS, strict=False):
            points = side.curve.train if side.curve is not None else []
            line = smooth(points)
            places = [getattr(point, axis) for point in points]
            panel.plot(places, [point.loss for point in points], ".", color=color, alpha=0.35, markersize=4)
            panel.plot(places, [point.loss for point in line], color=color, label=side.name)
    panels[0].xaxis.set_major_formatter("{x:,.0f}")
    panels[0].legend(frameon=False)
    picture = io.BytesIO()
    save(figure, picture)
    return picture.getvalue()
