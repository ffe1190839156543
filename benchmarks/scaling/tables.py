"""The tables of ``benchmarks.scaling``."""

from collections.abc import Callable, Iterator

from rich.table import Table

from benchmarks.common.calls import MODES
from benchmarks.common.quantities import bytes_text, percent_text, seconds_text, three_digits
from benchmarks.common.report import new_table
from benchmarks.scaling.cells import Cell
from benchmarks.scaling.rivals import OURS, RIVALS
from benchmarks.scaling.summary import SLOPE_FROM_TOKENS, Summary


def scaling_tables(summary: Summary) -> Iterator[Table]:
    """Times, memory and errors of each mode, and the ratios to softattn."""
    for mode in MODES:
        yield _time_table(summary, mode)
        if summary.has_memory:
            title = f"{mode}: peak memory over the inputs"
            yield _cell_table(title, summary, mode, _memory_text)
    for mode in MODES:
        yield _time_ratio_table(summary, mode)
        if summary.has_memory:
            title = f"{mode}: peak memory over softattn's (above 1: softattn needs less)"
            yield _ratio_table(title, summary, summary.memory_ratio, mode)
    yield _softattn_table(summary)


def _time_table(summary: Summary, mode: str) -> Table:
    title = (
        f"{mode}: median, its interquartile range in %, slope of the time per batch item from "
        f"n = {SLOPE_FROM_TOKENS:,} up"
    )
    table = _cell_table(title, summary, mode, _time_text)
    slopes = [summary.slope(rival, mode) for rival in summary.grid.rivals()]
    table.add_section()
    table.add_row("slope", *("" if slope is None else f"{slope:.2f}" for slope in slopes))
    return table


def _cell_table(title: str, summary: Summary, mode: str, text: Callable[[Cell], str]) -> Table:
    rivals = summary.grid.rivals()
    table = new_table(title, "n", *(RIVALS[rival].label for rival in rivals), left=0)
    for tokens in summary.grid.tokens():
        cells = [summary.grid.get(rival, tokens, mode) for rival in rivals]
        table.add_row(f"{tokens:,}", *("" if cell is None else text(cell) for cell in cells))
    return table


def _time_ratio_table(summary: Summary, mode: str) -> Table:
    title = f"{mode}: time over softattn's in the same run (above 1: softattn is faster)"
    table = _ratio_table(title, summary, summary.time_ratio, mode)
    crossovers = [summary.crossover(rival, mode) for rival in summary.others]
    table.add_section()
    table.add_row("from n", *("none" if n is None else f"{n:,}" for n in crossovers))
    table.caption = "from n: the least n measured from which on softattn is nowhere slower"
    return table


def _ratio_table(
    title: str, summary: Summary, ratio: Callable[[str, int, str], float | None], mode: str
) -> Table:
    table = new_table(title, "n", *(RIVALS[rival].label for rival in summary.others), left=0)
    for tokens in summary.grid.tokens():
        ratios = [ratio(rival, tokens, mode) for rival in summary.others]
        table.add_row(f"{tokens:,}", *("" if r is None else f"{three_digits(r)}×" for r in ratios))
    return table


def _softattn_table(summary: Summary) -> Table:
    title = (
        "softattn: error against exact attention, and the time that its traffic takes at the copy "
        f"bandwidth of this run, {summary.copy_bandwidth / 1e9:,.1f} GB/s"
    )
    names = ("traffic", "least time", "time", "fraction of the traffic limit", "error")
    table = new_table(title, "mode", "n", "batch", *names)
    for mode in MODES:
        for cell in summary.grid.row(OURS, mode):
            limit = summary.traffic_limit(cell.tokens, mode)
            if limit is None or cell.seconds is None:
                continue
            table.add_row(
                mode,
                f"{cell.tokens:,}",
                f"{cell.workload.batch:,}",
                bytes_text(limit.bytes),
                seconds_text(limit.least_seconds),
                seconds_text(cell.seconds),
                f"{100 * limit.fraction_of_traffic_limit:.1f} %",
                "" if cell.error is None else percent_text(cell.error),
            )
        table.add_section()
    return table


def _time_text(cell: Cell) -> str:
    if cell.timing is None:
        return f"[dim]{cell.skipped}[/]"
    spread = 100 * cell.timing.relative_spread()
    return f"{seconds_text(cell.timing.median)} [dim]{spread:.0f} %[/]"


def _memory_text(cell: Cell) -> str:
    return "" if cell.peak_bytes is None else bytes_text(cell.peak_bytes)
