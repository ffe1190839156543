"""How figures look, and their files: one for each panel, one for the main panels side by side.

The background is a dark card, so that one file suits light and dark pages. Text is sized to be
read on a screen that is 390 pixels wide.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

# Draws one panel.
Panel = Callable[[Axes], None]
# Panels by the name that their file has after that of the benchmark.
Panels = Mapping[str, Panel]

# The first eight follow Okabe and Ito's palette for the colour-blind, lightened for the dark card.
# Markers tell the others apart.
COLOURS = (
    *("#ff9e4a", "#56b4e9", "#2fc39a", "#e08fc0", "#f0e442", "#8ea4ff", "#ff6b5e", "#e6e8eb"),
    *("#b39ddb", "#9aa5b1", "#a5d65a", "#4dd0c4"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")

_CARD, _TEXT, _GRID = "#24292f", "#e6e8eb", "#454c54"
_ALONE = ((5.4, 4.6), 13.0)
_SIDE_BY_SIDE = ((5.4, 5.2), 20.0)


def style_of(place: int) -> dict[str, Any]:
    """The colour and the marker of the line at a place; the first line is drawn in front."""
    return {
        "color": COLOURS[place],
        "marker": MARKERS[place],
        "linewidth": 2.0 if place else 3.2,
        "zorder": 2 if place else 3,
    }


def name_ticks(panel: Axes, positions: Sequence[float]) -> None:
    """Puts ticks on the logarithmic horizontal axis at ``positions`` and nowhere else."""
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(FixedLocator(list(positions)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(list(positions), [f"{position:,g}" for position in positions])


def percent_ticks(panel: Axes) -> None:
    """Shows the fractions on the vertical axis in percent."""
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:,g} %"))


def legend_below(panel: Axes, columns: int = 2) -> None:
    """A legend under the panel, for more lines than find room in it."""
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, fontsize="small")


def write_panels(
    panels: Panels, together: Sequence[str], stem: Path, *, description: str
) -> list[Path]:
    """Writes ``<stem>_<panel>.png`` for each panel, and ``<stem>.png`` with those of ``together``.

    Args:
        panels: all panels by name.
        together: the names of those that stand side by side.
        stem: the start of the files' paths.
        description: goes into the files' metadata.
    """
    figures = {f"{stem}_{name}.png": ([panel], _ALONE) for name, panel in panels.items()}
    if together:
        figures[f"{stem}.png"] = ([panels[name] for name in together], _SIDE_BY_SIDE)
    stem.parent.mkdir(parents=True, exist_ok=True)
    for path, (drawn, (size, font)) in figures.items():
        with pyplot.rc_context(_style(font)):
            figure = _figure(drawn, size)
            figure.savefig(path, dpi=160, metadata={"Description": description})
            pyplot.close(figure)
    return [Path(path) for path in figures]


def _figure(panels: Sequence[Panel], size: tuple[float, float]) -> Figure:
    width, height = size
    figure, axes = pyplot.subplots(
        1,
        len(panels),
        figsize=(width * len(panels), height),
        squeeze=False,
        layout="constrained",
    )
    for panel, ax in zip(panels, axes[0], strict=True):
        panel(ax)
    return figure


def _style(font: float) -> dict[Any, Any]:
    return {
        "font.size": font,
        "axes.titlesize": "medium",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.edgecolor": _TEXT,
        "axes.labelcolor": _TEXT,
        "axes.facecolor": _CARD,
        "figure.facecolor": _CARD,
        "text.color": _TEXT,
        "xtick.color": _TEXT,
        "ytick.color": _TEXT,
        "grid.color": _GRID,
        "grid.linewidth": 0.8,
        "lines.markersize": 6,
        "legend.frameon": False,
        "legend.fontsize": "small",
    }
