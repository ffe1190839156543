"""The figures of ``benchmarks.cross_attention``: norm over the exact output's, by spread."""

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes

from benchmarks.common.figures import Panels, percent_ticks, style_of
from benchmarks.cross_attention.measurements import METHODS, Outcome

_DRAWN = ("token", "fixed floor", "softmax")


def norm_panels(outcomes: Sequence[Outcome]) -> Panels:
    """A panel for each source: "linear" values, landmarks of the keys."""
    drawn = [o for o in outcomes if o.values == "linear" and o.landmarks == "keys"]
    sources = dict.fromkeys(outcome.case.source for outcome in drawn)
    limit = 1.1 * max(outcome.norm for outcome in drawn if outcome.method in _DRAWN)
    return {
        source.replace(" ", "_"): partial(
            _panel, source, [o for o in drawn if o.case.source == source], limit
        )
        for source in sources
    }


def _panel(source: str, outcomes: list[Outcome], limit: float, panel: Axes) -> None:
    panel.axhline(1, color="white", linewidth=1, linestyle="--")
    for place, method in enumerate(_DRAWN):
        points = [(o.case.key_spread, o.norm) for o in outcomes if o.method == method]
        label = METHODS[method].title
        panel.plot(*zip(*points, strict=True), label=label, **style_of(place))
    panel.set_title(f"norm, {source}")
    panel.set(xlabel="spread of the tokens", ylim=(-0.03 * limit, limit))
    percent_ticks(panel)
    panel.legend(loc="best")
