"""The tables of ``benchmarks.accuracy``."""

from collections.abc import Iterator

from rich.table import Table

from benchmarks.accuracy_comparisons import COMPARISONS, Error


def accuracy_tables(errors: list[Error]) -> Iterator[Table]:
    """A table for each comparison: samplers and landmarks down, sharpness across."""
    for name, comparison in COMPARISONS.items():
        rows = [error for error in errors if error.comparison == name]
        if not rows:
            continue
        sharpnesses = sorted({error.sharpness for error in rows})
        table = Table(
            title=f"relative error, {comparison.title}; sharpness across", title_justify="left"
        )
        table.add_column("landmarks chosen by")
        table.add_column("m", justify="right")
        for sharpness in sharpnesses:
            table.add_column(f"× {sharpness:g}", justify="right")
        by_place = {(e.sampler, e.landmarks, e.sharpness): e.shown for e in rows}
        for sampler in dict.fromkeys(error.sampler for error in rows):
            for m in sorted({error.landmarks for error in rows}):
                found = (by_place.get((sampler, m, sharpness)) for sharpness in sharpnesses)
                table.add_row(sampler, str(m), *("" if e is None else _percent(e) for e in found))
            table.add_section()
        yield table


def _percent(error: float) -> str:
    return f"{100 * error:.3g} %"
