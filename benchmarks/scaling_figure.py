"""The figure of ``benchmarks.scaling``: time, and peak memory where it was measured, over n."""

from collections.abc import Callable
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.figure_style import COLOURS, MARKERS, figure_with_panels, head_and_foot, name_ticks
from benchmarks.quantities import bytes_text, seconds_text
from benchmarks.rivals import OURS, RIVALS
from benchmarks.scaling_cells import Cell
from benchmarks.scaling_summary import Summary
from benchmarks.workload import MODES

# Under this the pages that a process happens to touch drown what the call needs.
_LEAST_BYTES_SHOWN = 2**17


def scaling_figure(summary: Summary, foot: str) -> Figure:
    """One column for each mode: times above, peak memory below."""
    has_memory = any(cell.peak_bytes is not None for cell in summary.grid.cells.values())
    figure, rows = figure_with_panels(1 + has_memory, 2, size=(12, 11 if has_memory else 6.2))
    for panel, mode in zip(rows[0], MODES, strict=True):
        _draw(panel, summary, mode, _seconds, partial(_label_with_slope, summary, mode))
        panel.set_title(f"{mode}: time")
        panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: seconds_text(y)))
    if has_memory:
        for panel, mode in zip(rows[1], MODES, strict=True):
            _draw(panel, summary, mode, _shown_bytes, lambda name: RIVALS[name].label)
            panel.set_title(f"{mode}: peak memory over the inputs")
            panel.set_yscale("log", base=2)
            panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: bytes_text(y)))
    if "nystrom_attention" in summary.grid.rivals():
        foot = f"{foot}\n* a module: includes its projections and its pooling"
    head_and_foot(figure, f"Attention over n tokens ({_shape(summary)})", foot)
    return figure


def _shape(summary: Summary) -> str:
    workloads = [cell.workload for cell in summary.grid.cells.values()]
    one = workloads[0]
    if {workload.batch for workload in workloads} == {one.batch}:
        size = f"batch {one.batch}, {one.heads} heads"
    else:
        total = min(workload.batch * workload.heads * workload.tokens for workload in workloads)
        size = f"{one.heads} heads, batch × heads × n at least {total:,}"
    return f"{size}, {one.head_dim} features, {one.landmarks} landmarks"


def _draw(
    panel: Axes,
    summary: Summary,
    mode: str,
    quantity: Callable[[Cell], float | None],
    label: Callable[[str], str],
) -> None:
    names = list(RIVALS)
    for name in summary.grid.rivals():
        cells = [summary.grid.get(name, n, mode) for n in summary.grid.tokens()]
        points = [(c.tokens, y) for c in cells if c is not None and (y := quantity(c)) is not None]
        if not points:
            continue
        panel.plot(
            *zip(*points, strict=True),
            color=COLOURS[names.index(name)],
            marker=MARKERS[names.index(name)],
            linewidth=2.6 if name == OURS else 1.5,
            zorder=3 if name == OURS else 2,
            label=label(name),
        )
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.yaxis.set_minor_formatter(NullFormatter())
    tokens = summary.grid.tokens()
    name_ticks(panel, tokens, [f"{n:,}" for n in tokens])
    panel.tick_params("x", rotation=60, labelsize=9)
    panel.set_xlabel("tokens n")
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=2, fontsize=9)


def _seconds(cell: Cell) -> float | None:
    return None if cell.timing is None else cell.timing.median


def _shown_bytes(cell: Cell) -> float | None:
    shown = cell.peak_bytes is not None and cell.peak_bytes >= _LEAST_BYTES_SHOWN
    return cell.peak_bytes if shown else None


def _label_with_slope(summary: Summary, mode: str, name: str) -> str:
    slope = summary.slope(name, mode)
    label = RIVALS[name].label
    return label if slope is None else f"{label} (slope {slope:.2f})"
