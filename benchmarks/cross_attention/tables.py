"""The tables of ``benchmarks.cross_attention``."""

from collections.abc import Callable, Iterable, Sequence

from rich.table import Table

from benchmarks.common.quantities import percent_text, three_digits
from benchmarks.common.report import new_table
from benchmarks.cross_attention.inputs import SOURCES, Case
from benchmarks.cross_attention.measurements import METHODS, Outcome


def case_tables(outcomes: Sequence[Outcome]) -> Iterable[Table]:
    """For each source, kind of values and landmarks: a row for each case and method."""
    groups = _grouped(outcomes, lambda o: (o.case.source, o.values, o.landmarks))
    for (source, values, landmarks), group in groups.items():
        case = group[0].case
        table = new_table(
            f"{SOURCES[source]}, {case.queries:,} × {case.keys:,}, {values} values, "
            f"landmarks of {landmarks}",
            *("spread", "log w range", "attention"),
            *("error", "norm", "at floor", "largest output / value"),
            left=3,
        )
        for outcome in group:
            table.add_row(
                _spread_text(outcome.case),
                three_digits(outcome.log_weight_range),
                METHODS[outcome.method].title,
                percent_text(outcome.error),
                percent_text(outcome.norm),
                percent_text(outcome.at_floor),
                three_digits(outcome.largest),
            )
        yield table


def summary_table(outcomes: Sequence[Outcome]) -> Table:
    """The extremes over all cases, by method, landmarks and values."""
    table = new_table(
        "extremes over all cases",
        *("attention", "landmarks", "values"),
        *("least norm, spread ≤ 1.5", "largest norm, spread ≤ 1.5", "largest output / value"),
        left=3,
    )
    for (method, landmarks, values), group in _grouped(
        outcomes, lambda o: (o.method, o.landmarks, o.values)
    ).items():
        norms = [outcome.norm for outcome in group if outcome.case.query_spread <= 1.5]
        texts = (percent_text(bound(norms)) if norms else "" for bound in (min, max))
        largest = three_digits(max(outcome.largest for outcome in group))
        table.add_row(METHODS[method].title, landmarks, values, *texts, largest)
    return table


def _spread_text(case: Case) -> str:
    spreads = dict.fromkeys((case.query_spread, case.key_spread))
    return " over ".join(f"{spread:g}" for spread in spreads)


def _grouped(
    outcomes: Sequence[Outcome], key: Callable[[Outcome], tuple[str, str, str]]
) -> dict[tuple[str, str, str], list[Outcome]]:
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(key(outcome), []).append(outcome)
    return groups
