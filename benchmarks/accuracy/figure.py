"""The figures of ``benchmarks.accuracy``: error over the number of landmarks, for each input."""

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.accuracy.comparisons import Error
from benchmarks.accuracy.samplers import SAMPLERS
from benchmarks.common.figures import Panels, name_ticks, percent_ticks, style_of


def accuracy_panels(errors: Sequence[Error]) -> Panels:
    """A panel for each input, all with one range of errors."""
    limits = (0.7 * min(e.error for e in errors), 1.4 * max(e.error for e in errors))
    inputs = dict.fromkeys(error.input for error in errors)
    return {
        name: partial(_panel, name, [e for e in errors if e.input == name], limits)
        for name in inputs
    }


def _panel(name: str, errors: list[Error], limits: tuple[float, float], panel: Axes) -> None:
    for place, sampler in enumerate(SAMPLERS):
        points = sorted((e.landmarks, e.error) for e in errors if e.sampler == sampler)
        if points:
            panel.plot(*zip(*points, strict=True), label=sampler, **style_of(place))
    panel.set_title(f"error, {name}")
    panel.set(yscale="log", xlabel="landmarks", ylim=limits)
    name_ticks(panel, sorted({error.landmarks for error in errors}))
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    percent_ticks(panel)
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.legend(loc="best")
