"""The tables of ``benchmarks.pinv``."""

from collections.abc import Iterator

from rich.table import Table

from benchmarks.pinv_measurements import Spread
from benchmarks.quantities import error_text, seconds_text, three_digits


def pinv_tables(spreads: list[Spread]) -> Iterator[Table]:
    """Errors, then steps and times, a column for each method."""
    names = list(spreads[0].errors)
    errors = _table("worst relative error over the batch, against float64 pinv(A + ridge I)", names)
    times = _table("time for the batch, and steps of the Newton methods", names)
    for spread in spreads:
        row = (f"{spread.spread:g}", f"{three_digits(spread.condition)}")
        errors.add_row(*row, *(error_text(spread.errors[name].worst) for name in names))
        times.add_row(*row, *(_time_text(spread, name) for name in names))
    yield errors
    yield times


def _table(title: str, names: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("spread", justify="right")
    table.add_column("condition", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    return table


def _time_text(spread: Spread, name: str) -> str:
    text = seconds_text(spread.timings[name].median)
    return f"{text} [dim]{spread.steps[name]}[/]" if name in spread.steps else text
