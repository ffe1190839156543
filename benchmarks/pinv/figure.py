"""The figure of ``benchmarks.pinv``: error over condition number, over steps, and against time."""

import math
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.figure_style import COLOURS, MARKERS, figure_with_panels, head_and_foot
from benchmarks.pinv_measurements import Spread
from benchmarks.pinv_methods import NEWTON
from benchmarks.quantities import seconds_text


def pinv_figure(spreads: list[Spread], matrices: str, foot: str) -> Figure:
    """Three panels; the last two are of the spectrum with the highest condition number."""
    figure, ((by_condition, by_steps, by_time),) = figure_with_panels(1, 3, size=(15, 5.8))
    names = list(spreads[0].errors)
    styles: dict[str, dict[str, Any]] = {
        name: {"color": COLOURS[i], "marker": MARKERS[i], "label": name}
        for i, name in enumerate(names)
    }
    for name in names:
        points = sorted((spread.condition, spread.errors[name].worst) for spread in spreads)
        by_condition.plot(*_finite(points), **styles[name])
    by_condition.set(xscale="log", yscale="log", xlabel="condition number of A + ridge I")
    by_condition.set_ylabel("worst relative error")
    by_condition.set_title("each method left to itself")

    hardest = max(spreads, key=lambda spread: spread.condition)
    for name in NEWTON:
        errors = list(enumerate(error.worst for error in hardest.errors_by_steps[name]))
        by_steps.plot(*_finite([(float(k), e) for k, e in errors]), markevery=4, **styles[name])
    by_steps.set(yscale="log", xlabel="steps", ylim=(None, 4))
    by_steps.set_title(f"condition number {hardest.condition:,.0f}")

    for name in names:
        point = (hardest.timings[name].median, hardest.errors[name].worst)
        by_time.plot(*_finite([point]), linestyle="none", markersize=9, **styles[name])
    by_time.set(xscale="log", yscale="log", xlabel="time for the batch")
    by_time.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    by_time.xaxis.set_minor_locator(NullLocator())
    by_time.xaxis.set_major_formatter(FuncFormatter(lambda x, _: seconds_text(x)))
    by_time.set_title(f"condition number {hardest.condition:,.0f}")
    head_and_foot(figure, f"Inverting {matrices}", foot, legend_of=by_condition)
    return figure


def _finite(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """The coordinates of the points that a logarithmic axis can show."""
    shown = [(x, y) for x, y in points if math.isfinite(y) and y > 0]
    return [x for x, _ in shown], [y for _, y in shown]
