"""The pictures that the quickstart draws."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from examples import card

# Inches, for photographs of 3 : 2.
_PHOTOGRAPH_SIZE = (5.4, 3.95)
_ROW_SIZE = (5.4, 8.6)


@dataclass(frozen=True)
class AttentionRows:
    """Rows of the attention matrix, for the tokens at some places.

    approximated: [places, n], rows of softattn's matrix, which is never built as a whole.
    exact: [places, n], the rows that they approximate.
    layer_mismatch: largest difference between approximated · V and softattn's output for these
        tokens, divided by the largest entry of the output: 0 up to rounding.
    """

    approximated: Tensor
    exact: Tensor
    layer_mismatch: float

    @property
    def negative_weight(self) -> Tensor:
        """[places], summed size of the negative weights in a row, whose sum is 1."""
        return -self.approximated.clamp(max=0).sum(-1)

    @property
    def misplaced_weight(self) -> Tensor:
        """[places], half the summed difference to the exact row, whose sum is 1 too."""
        return (self.approximated - self.exact).abs().sum(-1) / 2


def photograph_with_places(image: Tensor, places: Mapping[str, tuple[float, float]]) -> Figure:
    """The photograph, and on it the numbers of the places, from 1.

    Args:
        image: [height, width, 3].
        places: (row, column) by name, as shares of the height and the width.
    """
    figure = Figure(figsize=_PHOTOGRAPH_SIZE, layout="constrained")
    panel = figure.add_subplot()
    panel.imshow(image, extent=(0, 1, 1, 0), aspect=image.shape[0] / image.shape[1])
    panel.set_title("the photograph", loc="left")
    panel.axis("off")
    for number, (y, x) in enumerate(places.values(), 1):
        panel.plot(x, y, "o", ms=18, mfc="white", mec=card.BACKGROUND, mew=1.3)
        panel.annotate(
            str(number), (x, y), ha="center", va="center_baseline", color=card.BACKGROUND,
            fontsize="small", weight="bold",
        )  # fmt: skip
    return figure


def attention_row(
    rows: AttentionRows, number: int, name: str, place: tuple[int, int], grid: tuple[int, int]
) -> Figure:
    """The approximated row of one place above the exact one, on one scale of colours.

    Args:
        rows: of all places, with n = height · width.
        number: of the place, from 1.
        name: of the place.
        place: its row and column, marked by a ring.
        grid: height and width.
    """
    approximated, exact = (
        math.prod(grid) * matrix[number - 1].view(grid).clamp(min=0)
        for matrix in (rows.approximated, rows.exact)
    )
    # The colour scale covers the exact row, except its few largest entries.
    most = float(exact.quantile(0.998))
    figure = Figure(figsize=_ROW_SIZE, layout="constrained")
    panels = figure.subplots(2)
    misplaced = f"{float(rows.misplaced_weight[number - 1]):.1%} misplaced"
    titles = (f"{number}  {name}, softattn: {misplaced}", "exact")
    for panel, weights, title in zip(panels, (approximated, exact), titles, strict=True):
        heat = panel.imshow(weights, cmap="magma", vmin=0, vmax=most)
        panel.plot(place[1], place[0], "o", ms=8, mfc="none", mec="#00c8ff", mew=1.6)
        panel.set_title(title, loc="left")
        panel.axis("off")
    bar = figure.colorbar(heat, ax=panels, orientation="horizontal", aspect=40, extend="max")
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize="small")
    bar.set_label("weight × n", fontsize="small")
    return figure


@matplotlib.rc_context(card.STYLE)
def draw_learning_curves(path: Path, curves: Mapping[str, list[list[float]]]) -> None:
    """Draws the test accuracy by epoch: the mean over seeds, and the range as a band.

    Args:
        path: of the picture.
        curves: by variant, the accuracy after each epoch for each seed.
    """
    figure = Figure(figsize=(5.4, 5.4), layout="constrained")
    axes = figure.add_subplot()
    for (variant, runs), colour in zip(curves.items(), card.COLOURS, strict=False):
        error = 1 - np.array(runs)
        epochs = np.arange(1, error.shape[1] + 1)
        dashes = "--" if variant.startswith("softmax") else "-"
        axes.plot(
            epochs, error.mean(0), dashes, color=colour, lw=2, marker="o", ms=4, label=variant
        )
        axes.fill_between(epochs, error.min(0), error.max(0), color=colour, alpha=0.13, lw=0)
    axes.set_yscale("log")
    axes.invert_yaxis()
    accuracies = np.array([0.2, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99])
    axes.set_yticks(1 - accuracies, [f"{a:.0%}" for a in accuracies])
    axes.minorticks_off()
    axes.grid(axis="y")
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy (logarithmic in the error)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    seeds = max(map(len, curves.values()))
    axes.set_title(f"handwritten digits, {seeds} seed{'s' * (seeds > 1)}", loc="left")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=160)
