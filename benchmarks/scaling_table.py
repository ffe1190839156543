"""The tables of ``benchmarks.scaling``."""

from collections.abc import Callable, Iterator

from rich.table import Table

from benchmarks.quantities import bytes_text, seconds_text, three_digits
from benchmarks.rivals import OURS, RIVALS
from benchmarks.scaling_cells import Cell
from benchmarks.scaling_summary import SLOPE_FROM_TOKENS, Summary
from benchmarks.workload import MODES

# The ratio of a rival to softattn at a number of tokens in a mode.
Ratio = Callable[[str, int, str], float | None]


def scaling_tables(summary: Summary) -> Iterator[Table]:
    """Times and memory of each mode, and what they say of softattn."""
    has_memory = any(cell.peak_bytes is not None for cell in summary.grid.cells.values())
    for mode in MODES:
        yield _time_table(summary, mode)
        if has_memory:
            yield _memory_table(summary, mode)
    for mode in MODES:
        yield _time_ratio_table(summary, mode)
        if has_memory:
            title = f"{mode}: peak memory of a rival over softattn's (above 1: softattn is smaller)"
            yield _ratio_table(title, summary, summary.memory_ratio, mode)
    yield _traffic_table(summary)


def _time_table(summary: Summary, mode: str) -> Table:
    title = (
        f"{mode}: median, its interquartile range in %, slope of the time per batch item from "
        f"n = {SLOPE_FROM_TOKENS:,} up"
    )
    rivals = summary.grid.rivals()
    table = _table_of_rivals(title, rivals)
    for tokens in summary.grid.tokens():
        cells = (summary.grid.get(rival, tokens, mode) for rival in rivals)
        table.add_row(f"{tokens:,}", *map(_time_text, cells))
    slopes = [summary.slope(rival, mode) for rival in rivals]
    table.add_section()
    table.add_row("slope", *("" if slope is None else f"{slope:.2f}" for slope in slopes))
    return table


def _memory_table(summary: Summary, mode: str) -> Table:
    rivals = summary.grid.rivals()
    table = _table_of_rivals(f"{mode}: peak memory over the inputs", rivals)
    for tokens in summary.grid.tokens():
        cells = (summary.grid.get(rival, tokens, mode) for rival in rivals)
        table.add_row(f"{tokens:,}", *map(_memory_text, cells))
    return table


def _time_ratio_table(summary: Summary, mode: str) -> Table:
    title = f"{mode}: time of a rival over softattn's in one run (above 1: softattn is faster)"
    table = _ratio_table(title, summary, summary.time_ratio, mode)
    table.add_section()
    table.add_row("from n", *(_crossover_text(summary, r, mode) for r in _others(summary)))
    table.caption = "from n: the least n measured from which on softattn is nowhere slower"
    return table


def _ratio_table(title: str, summary: Summary, ratio: Ratio, mode: str) -> Table:
    table = _table_of_rivals(title, _others(summary))
    for tokens in summary.grid.tokens():
        ratios = (ratio(rival, tokens, mode) for rival in _others(summary))
        table.add_row(f"{tokens:,}", *map(_ratio_text, ratios))
    return table


def _traffic_table(summary: Summary) -> Table:
    table = Table(
        title="softattn against the time that its traffic takes at the copy bandwidth of this "
        f"run, {summary.copy_bandwidth / 1e9:,.1f} GB/s",
        title_justify="left",
    )
    table.add_column("mode")
    for name in ("n", "batch", "traffic", "least time", "time", "fraction of the traffic limit"):
        table.add_column(name, justify="right")
    for mode in MODES:
        for tokens in summary.grid.tokens():
            cell, limit = summary.grid.get(OURS, tokens, mode), summary.traffic_limit(tokens, mode)
            if cell is None or cell.timing is None or limit is None:
                continue
            table.add_row(
                mode,
                f"{tokens:,}",
                f"{cell.workload.batch:,}",
                bytes_text(limit.traffic_bytes),
                seconds_text(limit.least_seconds),
                seconds_text(cell.timing.median),
                f"{100 * limit.fraction:.1f} %",
            )
        table.add_section()
    return table


def _crossover_text(summary: Summary, rival: str, mode: str) -> str:
    if all(summary.time_ratio(rival, tokens, mode) is None for tokens in summary.grid.tokens()):
        return ""
    crossover = summary.crossover(rival, mode)
    return "none" if crossover is None else f"{crossover:,}"


def _others(summary: Summary) -> list[str]:
    return [rival for rival in summary.grid.rivals() if rival != OURS]


def _table_of_rivals(title: str, rivals: list[str]) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("n", justify="right")
    for rival in rivals:
        table.add_column(RIVALS[rival].label, justify="right")
    return table


def _time_text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.timing is None:
        return f"[dim]{cell.skipped}[/]"
    return f"{seconds_text(cell.timing.median)} [dim]{100 * cell.timing.relative_spread():.0f} %[/]"


def _memory_text(cell: Cell | None) -> str:
    return "" if cell is None or cell.peak_bytes is None else bytes_text(cell.peak_bytes)


def _ratio_text(ratio: float | None) -> str:
    return "" if ratio is None else f"{three_digits(ratio)}×"
