"""The pictures that the quickstart draws."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

INK = "#24292f"
COLOURS = ("#0072b2", "#009e73", "#d55e00", "#6e7781")
OUTLINE = [withStroke(linewidth=3, foreground="white")]


def draw_attention_rows(
    path: Path,
    image: Tensor,
    places: Mapping[str, tuple[int, int]],
    approximated: Tensor,
    exact: Tensor,
    num_landmarks: int,
) -> None:
    """The photograph with its places, and above each other the two rows of each place.

    Args:
        path: where the picture goes.
        image: [height, width, 3].
        places: (row, column) by name.
        approximated: [places, height · width], softattn's rows.
        exact: [places, height · width], the rows that they approximate.
        num_landmarks: named in the title.
    """
    height, width, _ = image.shape
    n = height * width
    figure = Figure(figsize=(17, 5.3), layout="constrained")
    panels = figure.add_gridspec(2, len(places) + 2, wspace=0.02, hspace=0.02)
    photo = figure.add_subplot(panels[:, :2])
    photo.imshow(image)
    photo.set_title("The photograph and four of its tokens", loc="left", color=INK)
    photo.axis("off")
    for i, (name, place) in enumerate(places.items()):
        _mark(photo, place, 130)
        photo.annotate(
            f"{i + 1}", place[::-1], ha="center", va="center", color=INK, fontsize=9, weight="bold"
        )
        # The colour scale is that of the exact row but for its few largest entries.
        most = float(np.quantile(n * exact[i].numpy(), 0.998))
        pair = []
        for line, rows in enumerate((approximated, exact)):
            panel = figure.add_subplot(panels[line, i + 2])
            weights = n * rows[i].view(height, width).clamp(min=0)
            heat = panel.imshow(weights, cmap="magma", vmin=0, vmax=most)
            panel.set(xticks=[], yticks=[])
            _mark(panel, place, 40)
            pair.append(panel)
            if i == 0:
                panel.set_ylabel(("softattn", "exact")[line], color=INK, fontsize=12)
        pair[0].set_title(f"{i + 1}  {name}", color=INK)
        bar = figure.colorbar(
            heat, ax=pair, orientation="horizontal", fraction=0.06, pad=0.03, extend="max"
        )
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.ax.tick_params(labelsize=8, colors=INK)
    negative = float((-approximated.clamp(max=0)).sum(-1).max())
    figure.suptitle(
        f"What a token attends to: rows of the attention matrix over {n:,} tokens, from "
        f"{num_landmarks} landmarks and exactly",
        x=0.01, ha="left", fontsize=15, color=INK,
    )  # fmt: skip
    figure.supxlabel(
        "Colour: weight as a multiple of 1/n. Approximated entries can be negative, at most "
        f"{negative:.1%} of a row's weight here; they are drawn as 0.",
        x=0.99, ha="right", fontsize=10, color=INK,
    )  # fmt: skip
    figure.savefig(path, dpi=140)


def draw_learning_curves(path: Path, curves: Mapping[str, list[list[float]]]) -> None:
    """Test accuracy by epoch: the mean over seeds, and the range as a band.

    Args:
        path: where the picture goes.
        curves: by variant, for each seed the accuracy after each epoch.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for (variant, runs), colour in zip(curves.items(), COLOURS, strict=False):
        error = 1 - np.array(runs)
        epochs = np.arange(1, error.shape[1] + 1)
        dashes = "--" if variant.startswith("softmax") else "-"
        axes.plot(epochs, error.mean(0), dashes, color=colour, lw=2, label=variant)
        axes.fill_between(epochs, error.min(0), error.max(0), color=colour, alpha=0.13, lw=0)
    axes.set_yscale("log")
    axes.invert_yaxis()
    accuracies = np.array([0.2, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99])
    axes.set_yticks(1 - accuracies, [f"{a:.0%}" for a in accuracies])
    axes.minorticks_off()
    axes.grid(axis="y", color="#d0d7de", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("epoch", color=INK)
    axes.set_ylabel("test accuracy (the scale is that of the error)", color=INK)
    seeds = max(map(len, curves.values()))
    axes.set_title(
        f"Handwritten digits: one network, four attentions, {seeds} seeds", loc="left", color=INK
    )
    axes.legend(frameon=False, labelcolor=INK, loc="lower right")
    figure.savefig(path, dpi=140)


def _mark(axes: Axes, place: tuple[int, int], size: float) -> None:
    row, column = place
    filled = size > 100
    axes.scatter(
        column,
        row,
        s=size,
        facecolor="white" if filled else "none",
        edgecolor=INK if filled else "white",
        linewidth=1.3,
    )
