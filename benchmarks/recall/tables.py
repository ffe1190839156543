"""The table of ``benchmarks.recall``."""

import statistics
from collections.abc import Sequence

from rich.table import Table

from benchmarks.common.quantities import seconds_text
from benchmarks.common.report import new_table
from benchmarks.recall.attentions import ATTENTIONS
from benchmarks.recall.training import Recipe, Run


def recall_table(runs: Sequence[Run], recipe: Recipe) -> Table:
    """The median accuracy and its range over the seeds, by attention and number of pairs."""
    pairs = sorted({run.pairs for run in runs})
    table = new_table(
        f"queries that find their value, {recipe.landmarks} landmarks, {recipe.steps:,} steps",
        *("attention", *(f"{number} pairs" for number in pairs), "parameters", "s / 1,000 steps"),
    )
    for name, attention in ATTENTIONS.items():
        mine = [run for run in runs if run.attention == name]
        if not mine:
            continue
        cells = [accuracy_text([r.accuracy for r in mine if r.pairs == number]) for number in pairs]
        seconds = statistics.median(run.seconds for run in mine) / recipe.steps
        table.add_row(
            attention.label, *cells, f"{mine[0].parameters:,}", seconds_text(1000 * seconds)
        )
    return table


def accuracy_text(accuracies: Sequence[float]) -> str:
    """The median, and the lowest and highest of several."""
    if not accuracies:
        return ""
    median = f"{100 * statistics.median(accuracies):.1f} %"
    if len(accuracies) == 1:
        return median
    return f"{median} ({100 * min(accuracies):.1f} to {100 * max(accuracies):.1f})"
