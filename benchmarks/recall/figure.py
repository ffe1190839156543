"""The figure of ``benchmarks.recall``: accuracy over the number of pairs."""

import statistics
from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes

from benchmarks.common.figures import Panels, legend_below, name_ticks, percent_ticks, style_of
from benchmarks.recall.attentions import ATTENTIONS
from benchmarks.recall.training import Run


def recall_panels(runs: Sequence[Run]) -> Panels:
    """One panel: the median over the seeds for each attention."""
    return {"accuracy": partial(_panel, runs)}


def _panel(runs: Sequence[Run], panel: Axes) -> None:
    for place, (name, attention) in enumerate(ATTENTIONS.items()):
        by_pairs: dict[int, list[float]] = {}
        for run in runs:
            if run.attention == name:
                by_pairs.setdefault(run.pairs, []).append(run.accuracy)
        if by_pairs:
            points = [
                (pairs, statistics.median(found)) for pairs, found in sorted(by_pairs.items())
            ]
            panel.plot(*zip(*points, strict=True), label=attention.label, **style_of(place))
    panel.set_title("queries that find their value")
    panel.set(xlabel="pairs", ylim=(0, 1.03))
    name_ticks(panel, sorted({run.pairs for run in runs}))
    percent_ticks(panel)
    legend_below(panel)
