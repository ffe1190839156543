"""The figures of ``benchmarks.accuracy``: error over the number of landmarks, for each input."""

from collections.abc import Sequence
from functools import partial
from itertools import product

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.accuracy.comparisons import COMPARISONS, TO_SOFTMAX, Error
from benchmarks.accuracy.samplers import SAMPLERS
from benchmarks.common.figures import Panels, legend_below, name_ticks, percent_ticks, style_of


def accuracy_panels(errors: Sequence[Error]) -> Panels:
    """A panel for each input, all with one range of errors."""
    limits = (0.7 * min(e.error for e in errors), 1.4 * max(e.error for e in errors))
    inputs = dict.fromkeys(error.input for error in errors)
    return {
        name: partial(_panel, name, [e for e in errors if e.input == name], limits)
        for name in inputs
    }


def softmax_panel(errors: Sequence[Error]) -> Panels:
    """Errors against softmax on the photograph over the range of log w, by comparison and sampler.

    Of the numbers of landmarks that were measured, the one nearest to 49 is drawn.
    """
    drawn = [error for error in errors if error.input == "photograph"]
    return {"softmax": partial(_softmax_panel, drawn)} if drawn else {}


def _softmax_panel(drawn: Sequence[Error], panel: Axes) -> None:
    m = min((error.landmarks for error in drawn), key=lambda m: abs(m - 49))
    for place, (comparison, sampler) in enumerate(
        product(TO_SOFTMAX, ("k-means", "average pooling"))
    ):
        points = sorted(
            (e.log_weight_range, e.error)
            for e in drawn
            if (e.comparison, e.sampler, e.landmarks) == (comparison, sampler, m)
        )
        if points:
            label = f'"{COMPARISONS[comparison].normalization}", {sampler}'
            panel.plot(*zip(*points, strict=True), label=label, **style_of(place))
    panel.axvline(8, color="white", linewidth=1, linestyle="--")
    panel.set_title(f"error to softmax, photograph, {m} landmarks")
    panel.set(xscale="log", yscale="log", xlabel="range of log w")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    percent_ticks(panel)
    panel.yaxis.set_minor_formatter(NullFormatter())
    name_ticks(panel, [float(f"{r:.2g}") for r in sorted({e.log_weight_range for e in drawn})])
    legend_below(panel)


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
