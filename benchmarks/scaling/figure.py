"""The figures of ``benchmarks.scaling``: time and error, and for each mode time and memory."""

from collections.abc import Callable
from functools import partial

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.common.calls import MODES
from benchmarks.common.figures import (
    Panel,
    Panels,
    legend_below,
    name_ticks,
    percent_ticks,
    style_of,
)
from benchmarks.common.quantities import bytes_text, seconds_text
from benchmarks.scaling.cells import Cell
from benchmarks.scaling.rivals import OURS, RIVALS
from benchmarks.scaling.summary import Summary

# The attentions of the main figure.
MAIN = (OURS, "sdpa", "sdpa_flash", "formula")
# Smaller peaks are hidden by the pages that a process happens to touch.
_LEAST_BYTES_SHOWN = 2**17
_MOST_TICKS = 3

Quantity = Callable[[Cell], float | None]


def scaling_panels(summary: Summary) -> Panels:
    """Panels by name; "time" and "error" are those of the main figure."""
    rivals = summary.grid.rivals()
    main = [name for name in MAIN if name in rivals]
    panels: dict[str, Panel] = {"time": partial(_time_panel, summary, "forward", main)}
    if any(_error(cell) for cell in summary.grid.cells.values()):
        panels["error"] = partial(_error_panel, summary)
    for mode, name in zip(MODES, ("forward", "backward"), strict=True):
        panels[f"time_{name}"] = partial(_time_panel, summary, mode, rivals)
        if summary.has_memory:
            panels[f"memory_{name}"] = partial(_memory_panel, summary, mode, rivals)
    return panels


def _time_panel(summary: Summary, mode: str, rivals: list[str], panel: Axes) -> None:
    _draw(panel, summary, mode, rivals, lambda cell: cell.seconds)
    panel.set_title(f"time, {mode}")
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: seconds_text(y)))


def _memory_panel(summary: Summary, mode: str, rivals: list[str], panel: Axes) -> None:
    _draw(panel, summary, mode, rivals, _shown_bytes)
    panel.set_title(f"peak memory, {mode}")
    panel.set_yscale("log", base=2)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: bytes_text(y)))


def _error_panel(summary: Summary, panel: Axes) -> None:
    _draw(panel, summary, "forward", [OURS], _error)
    panel.set_title("error of softattn")
    panel.set(yscale="linear")
    panel.set_ylim(bottom=0)
    percent_ticks(panel)


def _draw(panel: Axes, summary: Summary, mode: str, rivals: list[str], quantity: Quantity) -> None:
    names = list(RIVALS)
    for name in rivals:
        cells = summary.grid.row(name, mode)
        points = [(cell.tokens, y) for cell in cells if (y := quantity(cell)) is not None]
        if points:
            style = style_of(names.index(name))
            panel.plot(*zip(*points, strict=True), label=RIVALS[name].label, **style)
    panel.set_yscale("log")
    panel.yaxis.set_minor_formatter(NullFormatter())
    name_ticks(panel, _spread(summary.grid.tokens()))
    panel.set_xlabel("tokens")
    if len(rivals) > len(MAIN):
        legend_below(panel)
    elif len(rivals) > 1:
        panel.legend(loc="best")


def _spread(tokens: list[int]) -> list[int]:
    """Up to ``_MOST_TICKS`` of the numbers of tokens, from the least to the most."""
    last, count = len(tokens) - 1, min(len(tokens), _MOST_TICKS)
    return [tokens[round(last * i / max(count - 1, 1))] for i in range(count)]


def _shown_bytes(cell: Cell) -> float | None:
    shown = cell.peak_bytes is not None and cell.peak_bytes >= _LEAST_BYTES_SHOWN
    return cell.peak_bytes if shown else None


def _error(cell: Cell) -> float | None:
    return cell.error
