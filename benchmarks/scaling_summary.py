"""What ``benchmarks.scaling`` draws from its cells: slopes, ratios, shares of the limit."""

from dataclasses import dataclass
from typing import Any

from benchmarks.rivals import OURS, RIVALS
from benchmarks.scaling_cells import Cell, Grid, log_log_slope
from benchmarks.timing import paired_ratio
from benchmarks.traffic import traffic_bytes
from benchmarks.workload import MODES

SLOPE_FROM_TOKENS = 4096


@dataclass(frozen=True)
class TrafficLimit:
    """What softattn's traffic allows in one cell, and what it reached.

    traffic_bytes: that the passes must move.
    least_seconds: these bytes at the copy bandwidth.
    fraction: of the limit, the least time over the measured one.
    """

    traffic_bytes: int
    least_seconds: float
    fraction: float


@dataclass(frozen=True)
class Summary:
    """Numbers drawn from a grid of cells.

    copy_bandwidth: bytes per second.
    """

    grid: Grid
    copy_bandwidth: float

    def slope(self, rival: str, mode: str) -> float | None:
        """The exponent of time per batch item over n from ``SLOPE_FROM_TOKENS`` up."""
        return log_log_slope(self.grid.seconds_per_item(rival, mode), SLOPE_FROM_TOKENS)

    def time_ratio(self, rival: str, tokens: int, mode: str) -> float | None:
        """The time of a rival over that of softattn."""
        theirs, ours = self._pair(rival, tokens, mode)
        if theirs is None or ours is None or theirs.timing is None or ours.timing is None:
            return None
        return paired_ratio(theirs.timing, ours.timing)

    def crossover(self, rival: str, mode: str) -> int | None:
        """The least n measured from which on softattn is nowhere slower than the rival."""
        crossover = None
        for tokens in reversed(self.grid.tokens()):
            ratio = self.time_ratio(rival, tokens, mode)
            if ratio is not None:
                if ratio < 1:
                    break
                crossover = tokens
        return crossover

    def memory_ratio(self, rival: str, tokens: int, mode: str) -> float | None:
        """The peak memory of a rival over that of softattn."""
        theirs, ours = self._pair(rival, tokens, mode)
        if theirs is None or ours is None or theirs.peak_bytes is None or not ours.peak_bytes:
            return None
        return theirs.peak_bytes / ours.peak_bytes

    def traffic_limit(self, tokens: int, mode: str) -> TrafficLimit | None:
        """How near softattn comes to the time that its traffic takes."""
        cell = self.grid.get(OURS, tokens, mode)
        if cell is None or cell.timing is None:
            return None
        count = traffic_bytes(cell.workload, mode)
        least = count / self.copy_bandwidth
        return TrafficLimit(count, least, least / cell.timing.median)

    def as_json(self) -> dict[str, Any]:
        """Everything measured, and everything drawn from it."""
        rivals = self.grid.rivals()
        return {
            "copy_bandwidth_bytes_per_second": self.copy_bandwidth,
            "rivals": {
                name: {"label": RIVALS[name].label, "note": RIVALS[name].note} for name in rivals
            },
            "cells": [_cell_json(cell) for cell in self.grid.cells.values()],
            "slopes_from_tokens": SLOPE_FROM_TOKENS,
            "slopes": {name: {mode: self.slope(name, mode) for mode in MODES} for name in rivals},
            "ratios_to_softattn": [
                {
                    "rival": name,
                    "tokens": tokens,
                    "mode": mode,
                    "time": self.time_ratio(name, tokens, mode),
                    "peak_memory": self.memory_ratio(name, tokens, mode),
                }
                for mode in MODES
                for tokens in self.grid.tokens()
                for name in rivals
                if name != OURS and self.time_ratio(name, tokens, mode) is not None
            ],
            "crossovers": {
                name: {mode: self.crossover(name, mode) for mode in MODES}
                for name in rivals
                if name != OURS
            },
            "traffic_limit": [
                {
                    "tokens": tokens,
                    "mode": mode,
                    "bytes": limit.traffic_bytes,
                    "least_seconds": limit.least_seconds,
                    "fraction_of_traffic_limit": limit.fraction,
                }
                for mode in MODES
                for tokens in self.grid.tokens()
                if (limit := self.traffic_limit(tokens, mode)) is not None
            ],
        }

    def _pair(self, rival: str, tokens: int, mode: str) -> tuple[Cell | None, Cell | None]:
        return self.grid.get(rival, tokens, mode), self.grid.get(OURS, tokens, mode)


def _cell_json(cell: Cell) -> dict[str, Any]:
    timing = cell.timing
    return {
        "rival": cell.rival,
        "tokens": cell.tokens,
        "batch": cell.workload.batch,
        "mode": cell.mode,
        "skipped": cell.skipped,
        "failure": cell.failure,
        "median_seconds": None if timing is None else timing.median,
        "quartiles_seconds": None if timing is None else timing.quartiles,
        "rounds_seconds": None if timing is None else timing.rounds,
        "peak_bytes": cell.peak_bytes,
    }
