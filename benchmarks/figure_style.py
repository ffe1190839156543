"""How figures look: one set of colours, sizes and a line that says where the numbers come from."""

from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

# Okabe and Ito's palette, which the colour-blind can tell apart, and for who comes after it five
# more that markers must help with.
COLOURS = (
    *("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"),
    *("#882255", "#999999", "#332288", "#999933", "#44aa99"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")

_FOOT_LINE_INCHES = 0.2
_LEGEND_INCHES = 0.35

_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "svg.fonttype": "path",
}


def figure_with_panels(
    rows: int, columns: int, *, size: tuple[float, float], share: bool = False
) -> tuple[Figure, list[list[Axes]]]:
    """A figure and its panels, row by row; ``share`` gives all panels one pair of axes."""
    pyplot.rcParams.update(_STYLE)
    figure, panels = pyplot.subplots(
        rows, columns, figsize=size, squeeze=False, sharex=share, sharey=share, layout="constrained"
    )
    return figure, [list(row) for row in panels]


def name_ticks(panel: Axes, positions: Sequence[float], labels: Sequence[str]) -> None:
    """Puts ticks on the horizontal axis at ``positions`` and nowhere else."""
    panel.xaxis.set_major_locator(FixedLocator(list(positions)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(list(positions), list(labels))


def head_and_foot(figure: Figure, title: str, foot: str, legend_of: Axes | None = None) -> None:
    """The title above the panels; below, the line on device and versions.

    Where all panels share one legend, that of ``legend_of`` stands between panels and foot.
    """
    figure.suptitle(title, fontsize=13, fontweight="bold")
    inch = 1 / figure.get_figheight()
    text = figure.text(0.5, 0.05 * inch, foot, ha="center", va="bottom")
    text.set(fontsize=8, color="#555555", in_layout=False)
    height = _FOOT_LINE_INCHES * (1 + foot.count("\n")) * inch
    if legend_of is not None:
        handles, labels = legend_of.get_legend_handles_labels()
        legend = figure.legend(
            handles,
            labels,
            loc="lower center",
            ncols=len(labels),
            bbox_to_anchor=(0.5, height),
            borderaxespad=0,
        )
        legend.set_in_layout(False)
        height += _LEGEND_INCHES * inch
    if (engine := figure.get_layout_engine()) is not None:
        engine.set(rect=(0, height, 1, 1 - height))  # type: ignore[call-arg]
