"""The figure of ``benchmarks.frontier``: error over time, for each input."""

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.common.figures import Panels, legend_below, percent_ticks, style_of
from benchmarks.frontier.measurements import WAYS, Point


def frontier_panels(points: Sequence[Point]) -> Panels:
    """A panel for each input, with a line for each way to spend time."""
    inputs = dict.fromkeys(point.input for point in points)
    return {name: partial(_panel, name, [p for p in points if p.input == name]) for name in inputs}


def _panel(name: str, points: list[Point], panel: Axes) -> None:
    for place, way in enumerate(WAYS):
        line = [(1e3 * p.seconds, p.error) for p in points if p.way == way]
        panel.plot(*zip(*line, strict=True), label=way, **style_of(place))
    panel.set_title(f"error over time, {name}")
    panel.set(xscale="log", yscale="log", xlabel="ms of a forward pass")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 4)))
    percent_ticks(panel)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_formatter(NullFormatter())
    legend_below(panel, columns=1)
