"""The figures of ``benchmarks.pinv``: error over condition number, over steps, and against time."""

import math
from collections.abc import Iterable
from functools import partial

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.common.figures import Panels, legend_below, style_of
from benchmarks.common.quantities import seconds_text
from benchmarks.pinv.measurements import Spread
from benchmarks.pinv.methods import METHODS, NEWTON


def pinv_panels(spreads: list[Spread]) -> Panels:
    """Panels by name; steps and time are those at the highest condition number."""
    hardest = max(spreads, key=lambda spread: spread.condition)
    return {
        "condition": partial(_condition_panel, spreads=spreads),
        "steps": partial(_steps_panel, spread=hardest),
        "time": partial(_time_panel, spread=hardest),
    }


def _condition_panel(panel: Axes, spreads: list[Spread]) -> None:
    for name in METHODS:
        points = sorted((spread.condition, spread.errors[name].worst) for spread in spreads)
        _plot(panel, name, points)
    panel.set(xscale="log", yscale="log", xlabel="condition number", title="worst error")
    legend_below(panel)


def _steps_panel(panel: Axes, spread: Spread) -> None:
    for name in NEWTON:
        errors = enumerate(error.worst for error in spread.errors_by_steps[name])
        _plot(panel, name, errors, markevery=4)
    panel.set(yscale="log", xlabel=f"steps at condition {spread.condition:,.0f}", ylim=(None, 4))
    panel.set_title("worst error")
    legend_below(panel)


def _time_panel(panel: Axes, spread: Spread) -> None:
    for name in METHODS:
        point = (spread.timings[name].median, spread.errors[name].worst)
        _plot(panel, name, [point], linestyle="none", markersize=11)
    panel.set(xscale="log", yscale="log", title="worst error")
    panel.set_xlabel(f"time at condition {spread.condition:,.0f}")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: seconds_text(x)))
    legend_below(panel)


def _plot(panel: Axes, name: str, points: Iterable[tuple[float, float]], **options: object) -> None:
    """Draws the points that a logarithmic axis can show."""
    shown = [(x, y) for x, y in points if math.isfinite(y) and y > 0]
    style = style_of(list(METHODS).index(name)) | options
    panel.plot([x for x, _ in shown], [y for _, y in shown], label=name, **style)
