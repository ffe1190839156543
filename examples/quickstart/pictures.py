"""The pictures that the quickstart draws."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

INK = "#24292f"
COLOURS = ("#0072b2", "#009e73", "#d55e00", "#6e7781")


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


def draw_attention_rows(
    path: Path,
    image: Tensor,
    places: Mapping[str, tuple[int, int]],
    rows: AttentionRows,
    num_landmarks: int,
) -> None:
    """Draws the photograph with its places, and for each place the approximated and exact row.

    Args:
        path: of the picture.
        image: [height, width, 3].
        places: (row, column) by name.
        rows: of these places, with n = height · width.
        num_landmarks: named in the title.
    """
    height, width, _ = image.shape
    n = height * width
    figure = Figure(figsize=(17, 5), layout="compressed")
    panels = figure.add_gridspec(2, len(places) + 2)
    photo = figure.add_subplot(panels[:, :2])
    photo.imshow(image)
    photo.set_title("The photograph and four of its tokens", loc="left", color=INK)
    photo.axis("off")
    photo.set_anchor("N")
    for i, (name, place) in enumerate(places.items()):
        _mark(photo, place, filled=True)
        photo.annotate(
            f"{i + 1}", place[::-1], ha="center", va="center", color=INK, fontsize=9, weight="bold"
        )
        # The colour scale covers the exact row, except its few largest entries.
        most = float(np.quantile(n * rows.exact[i].numpy(), 0.998))
        pair = []
        for line, matrix in enumerate((rows.approximated, rows.exact)):
            panel = figure.add_subplot(panels[line, i + 2])
            weights = n * matrix[i].view(height, width).clamp(min=0)
            heat = panel.imshow(weights, cmap="magma", vmin=0, vmax=most)
            panel.set(xticks=[], yticks=[])
            _mark(panel, place, filled=False)
            pair.append(panel)
            if i == 0:
                panel.set_ylabel(("softattn", "exact")[line], color=INK, fontsize=12)
        pair[0].set_title(f"{i + 1}  {name}", color=INK)
        pair[0].text(
            0.98, 0.96, f"{float(rows.misplaced_weight[i]):.1%} misplaced", color="white",
            fontsize=9, ha="right", va="top", transform=pair[0].transAxes,
        )  # fmt: skip
        bar = figure.colorbar(
            heat, ax=pair, orientation="horizontal", fraction=0.06, pad=0.03, extend="max"
        )
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, colors=INK)
    figure.suptitle(
        f"What a token attends to: rows of the attention matrix over {n:,} tokens, from "
        f"{num_landmarks} landmarks and exactly",
        x=0.01, ha="left", fontsize=15, color=INK,
    )  # fmt: skip
    figure.supxlabel(
        "Colour: weight as a multiple of 1/n. Misplaced: half the summed difference of the two "
        "rows, whose weights sum to 1. Approximated entries\ncan be negative, here at most "
        f"{float(rows.negative_weight.max()):.1%} of a row's weight in all; they are drawn as 0.",
        x=0.01, ha="left", fontsize=10, color=INK,
    )  # fmt: skip
    figure.savefig(path, dpi=140)


def draw_learning_curves(path: Path, curves: Mapping[str, list[list[float]]]) -> None:
    """Draws the test accuracy by epoch: the mean over seeds, and the range as a band.

    Args:
        path: of the picture.
        curves: by variant, the accuracy after each epoch for each seed.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for (variant, runs), colour in zip(curves.items(), COLOURS, strict=False):
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
    axes.grid(axis="y", color="#d0d7de", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("epoch", color=INK)
    axes.set_ylabel("test accuracy (logarithmic in the error)", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    seeds = max(map(len, curves.values()))
    axes.set_title(
        f"Handwritten digits: one network, four attentions, {seeds} seed{'s' * (seeds > 1)}",
        loc="left",
        color=INK,
    )
    axes.legend(edgecolor="white", framealpha=1, labelcolor=INK, loc="lower right")
    figure.savefig(path, dpi=140)


def _mark(axes: Axes, place: tuple[int, int], *, filled: bool) -> None:
    row, column = place
    axes.scatter(
        column,
        row,
        s=130 if filled else 40,
        facecolor="white" if filled else "none",
        edgecolor=INK if filled else "#00c8ff",
        linewidth=1.3,
    )
