"""The curves of rows: the loss on the validation blocks over the minutes of training, in one picture.

Run: python -m tests.benchmarks.curves ours=FILE trainer=FILE … --level KenLM=4.23 --png FILE

Each FILE has rows with a `curve`, as `record` and `trainer` write them; LABEL=FILE draws all of its rows in one color.
A level is a loss that took no training to speak of, drawn as a line across.
"""

import argparse
import json
from pathlib import Path

from textgen.publishing.plots import COLORS, INCHES, INK, new_figure, save

SECONDS_IN_A_MINUTE = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="LABEL=FILE", help="rows with a curve")
    parser.add_argument("--level", action="append", default=[], metavar="LABEL=NATS", help="a loss to compare with")
    parser.add_argument("--png", type=Path, required=True, help="the picture")
    options = parser.parse_args()
    figure, (axes,) = new_figure(INCHES, 1)
    for color, (label, _, file) in zip(COLORS.values(), (one.partition("=") for one in options.files), strict=False):
        for number, row in enumerate(json.loads(Path(file).read_text())):
            minutes = [point["seconds"] / SECONDS_IN_A_MINUTE for point in row["curve"]]
            losses = [point["loss_nats"] for point in row["curve"]]
            axes.plot(minutes, losses, color=color, linewidth=1.2, label=None if number else label)
    for label, _, nats in (one.partition("=") for one in options.level):
        axes.axhline(float(nats), color=INK, linestyle=":", linewidth=1.2, label=label)
    axes.set(title="Loss on validation", xlabel="minutes of training", ylabel="loss (nats a token)")
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    save(figure, options.png)


if __name__ == "__main__":
    main()
