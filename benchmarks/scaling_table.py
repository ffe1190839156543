"""The tables of ``benchmarks.scaling``."""

from collections.abc import Iterator

from rich.table import Table

from benchmarks.quantities import bytes_text, seconds_text, three_digits
from benchmarks.rivals import RIVALS
from benchmarks.scaling_cells import Cell
from benchmarks.scaling_summary import OURS, SLOPE_FROM_TOKENS, Summary
from benchmarks.workload import MODES, Workload


def scaling_tables(summary: Summary, workloads: list[Workload]) -> Iterator[Table]:
    """Times and memory of each mode, and what they say of softattn."""
    has_memory = any(cell.peak_bytes is not None for cell in summary.grid.cells.values())
    for mode in MODES:
        yield _time_table(summary, mode)
        if has_memory:
            yield _memory_table(summary, mode)
    yield _ratio_table(summary, workloads, has_memory)


def _time_table(summary: Summary, mode: str) -> Table:
    title = f"{mode}: median, its interquartile range in %, slope from n = {SLOPE_FROM_TOKENS:,} up"
    table = _table_of_rivals(title, summary)
    for tokens in summary.grid.tokens():
        cells = (summary.grid.get(rival, tokens, mode) for rival in summary.grid.rivals())
        table.add_row(f"{tokens:,}", *map(_time_text, cells))
    slopes = [summary.slope(rival, mode) for rival in summary.grid.rivals()]
    table.add_section()
    table.add_row("slope", *("" if slope is None else f"{slope:.2f}" for slope in slopes))
    return table


def _memory_table(summary: Summary, mode: str) -> Table:
    table = _table_of_rivals(f"{mode}: peak memory over the inputs", summary)
    for tokens in summary.grid.tokens():
        cells = (summary.grid.get(rival, tokens, mode) for rival in summary.grid.rivals())
        table.add_row(f"{tokens:,}", *map(_memory_text, cells))
    return table


def _table_of_rivals(title: str, summary: Summary) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("n", justify="right")
    for rival in summary.grid.rivals():
        table.add_column(RIVALS[rival].label, justify="right")
    return table


def _ratio_table(summary: Summary, workloads: list[Workload], has_memory: bool) -> Table:
    table = Table(
        title="rival over softattn in one run (above 1: softattn is faster or smaller); softattn's "
        f"share of the traffic limit, copy bandwidth {summary.copy_bandwidth / 1e9:,.1f} GB/s",
        title_justify="left",
    )
    rivals = [name for name in ("sdpa", "paper_formula") if name in summary.grid.rivals()]
    table.add_column("mode")
    table.add_column("n", justify="right")
    for rival in rivals:
        table.add_column(f"{RIVALS[rival].label}: time", justify="right")
        if has_memory:
            table.add_column("memory", justify="right")
    table.add_column("traffic limit", justify="right")
    for mode in MODES:
        for workload in workloads:
            if summary.grid.get(OURS, workload.tokens, mode) is None:
                continue
            ratios: list[str] = []
            for rival in rivals:
                ratios.append(_ratio_text(summary.time_ratio(rival, workload.tokens, mode)))
                if has_memory:
                    ratios.append(_ratio_text(summary.memory_ratio(rival, workload.tokens, mode)))
            fraction = summary.traffic_fraction(workload, mode)
            share = "" if fraction is None else f"{100 * fraction:.1f} %"
            table.add_row(mode, f"{workload.tokens:,}", *ratios, share)
        table.add_section()
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
