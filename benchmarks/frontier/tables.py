"""The table of ``benchmarks.frontier``."""

from collections.abc import Sequence

from rich.table import Table

from benchmarks.common.quantities import percent_text, seconds_text
from benchmarks.common.report import new_table
from benchmarks.frontier.measurements import Point


def frontier_table(points: Sequence[Point], tokens: int) -> Table:
    """Errors and times by input, way and landmarks."""
    numbers = sorted({point.landmarks for point in points})
    table = new_table(
        f'error and time of "token" with its landmarks, {tokens:,} tokens',
        *("input", "way", *(f"m = {m}" for m in numbers)),
        left=2,
    )
    for key in dict.fromkeys((point.input, point.way) for point in points):
        by_landmarks = {p.landmarks: p for p in points if (p.input, p.way) == key}
        cells = [by_landmarks[m] for m in numbers if m in by_landmarks]
        table.add_row(*key, *(f"{percent_text(p.error)}, {seconds_text(p.seconds)}" for p in cells))
    return table
