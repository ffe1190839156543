"""What follows from the cells of ``benchmarks.scaling``: slopes, ratios, share of the limit."""

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.common.calls import MODES
from benchmarks.common.timing import paired_ratio
from benchmarks.scaling.cells import Cell, Grid
from benchmarks.scaling.rivals import OURS, RIVALS

SLOPE_FROM_TOKENS = 4096


@dataclass(frozen=True)
class TrafficLimit:
    """The limit of softattn's traffic in one cell.

    bytes: that the passes must move.
    least_seconds: the time for these bytes at the copy bandwidth.
    fraction_of_traffic_limit: that least time over the measured time.
    """

    bytes: int
    least_seconds: float
    fraction_of_traffic_limit: float


@dataclass(frozen=True)
class Summary:
    """Numbers that follow from a grid of cells.

    copy_bandwidth: bytes per second.
    """

    grid: Grid
    copy_bandwidth: float

    @property
    def others(self) -> list[str]:
        """The attentions other than softattn."""
        return [rival for rival in self.grid.rivals() if rival != OURS]

    @property
    def has_memory(self) -> bool:
        """Whether peak memory was measured."""
        return any(cell.peak_bytes is not None for cell in self.grid.cells.values())

    def slope(self, rival: str, mode: str) -> float | None:
        """The exponent of time per batch item over n from ``SLOPE_FROM_TOKENS`` up.

        By least squares; None under two sizes.
        """
        points = [
            (math.log(cell.tokens), math.log(cell.seconds / cell.workload.batch))
            for cell in self.grid.row(rival, mode)
            if cell.seconds is not None and cell.tokens >= SLOPE_FROM_TOKENS
        ]
        if len(points) < 2:
            return None
        return statistics.linear_regression(*zip(*points, strict=True)).slope

    def time_ratio(self, rival: str, tokens: int, mode: str) -> float | None:
        """The time of an attention over that of softattn."""
        theirs, ours = (self.grid.get(name, tokens, mode) for name in (rival, OURS))
        if theirs is None or ours is None or theirs.timing is None or ours.timing is None:
            return None
        return paired_ratio(theirs.timing, ours.timing)

    def memory_ratio(self, rival: str, tokens: int, mode: str) -> float | None:
        """The peak memory of an attention over that of softattn."""
        theirs, ours = (self.grid.get(name, tokens, mode) for name in (rival, OURS))
        if theirs is None or ours is None or theirs.peak_bytes is None or not ours.peak_bytes:
            return None
        return theirs.peak_bytes / ours.peak_bytes

    def crossover(self, rival: str, mode: str) -> int | None:
        """The least n measured from which on softattn is nowhere slower than the attention."""
        crossover = None
        for tokens in reversed(self.grid.tokens()):
            ratio = self.time_ratio(rival, tokens, mode)
            if ratio is not None:
                if ratio < 1:
                    break
                crossover = tokens
        return crossover

    def traffic_limit(self, tokens: int, mode: str) -> TrafficLimit | None:
        """How near softattn comes to the time of its traffic."""
        cell = self.grid.get(OURS, tokens, mode)
        if cell is None or cell.seconds is None:
            return None
        count = cell.workload.traffic_bytes(mode)
        least = count / self.copy_bandwidth
        return TrafficLimit(count, least, least / cell.seconds)

    def as_json(self) -> dict[str, Any]:
        """Everything measured, and everything that follows from it."""
        places = [(tokens, mode) for mode in MODES for tokens in self.grid.tokens()]
        return {
            "copy_bandwidth_bytes_per_second": self.copy_bandwidth,
            "rivals": {
                name: {"label": RIVALS[name].label, "note": RIVALS[name].note}
                for name in self.grid.rivals()
            },
            "cells": [_cell_json(cell) for cell in self.grid.cells.values()],
            "slopes_from_tokens": SLOPE_FROM_TOKENS,
            "slopes": {
                name: {mode: self.slope(name, mode) for mode in MODES}
                for name in self.grid.rivals()
            },
            "ratios_to_softattn": [
                {"rival": name, "tokens": n, "mode": mode, "time": ratio}
                | {"peak_memory": self.memory_ratio(name, n, mode)}
                for n, mode in places
                for name in self.others
                if (ratio := self.time_ratio(name, n, mode)) is not None
            ],
            "crossovers": {
                name: {mode: self.crossover(name, mode) for mode in MODES} for name in self.others
            },
            "traffic_limit": [
                {"tokens": n, "mode": mode, **asdict(limit)}
                for n, mode in places
                if (limit := self.traffic_limit(n, mode)) is not None
            ],
        }


def _cell_json(cell: Cell) -> dict[str, Any]:
    timing = cell.timing
    return {
        "rival": cell.rival,
        "tokens": cell.tokens,
        "batch": cell.workload.batch,
        "mode": cell.mode,
        "skipped": cell.skipped,
        "failure": cell.failure,
        "median_seconds": cell.seconds,
        "quartiles_seconds": None if timing is None else timing.quartiles,
        "rounds_seconds": None if timing is None else timing.rounds,
        "peak_bytes": cell.peak_bytes,
        "error": cell.error,
    }
