"""What ``benchmarks.scaling`` draws from its cells: slopes, ratios, shares of the limit."""

from dataclasses import dataclass
from typing import Any

from benchmarks.arguments import DTYPES
from benchmarks.rivals import RIVALS
from benchmarks.scaling_cells import Cell, Grid, log_log_slope
from benchmarks.timing import paired_ratio
from benchmarks.workload import MODES, Workload

SLOPE_FROM_TOKENS = 4096
OURS = "softattn"

# Elements per token and feature that must be read or written. "token" reads V once more forward,
# and V and O once more backward.
_FORWARD_ELEMENTS = {"none": 4, "landmark": 4, "token": 5}
_BACKWARD_ELEMENTS = {"none": 7, "landmark": 7, "token": 9}


@dataclass(frozen=True)
class Summary:
    """Numbers drawn from a grid of cells.

    copy_bandwidth: bytes per second.
    """

    grid: Grid
    copy_bandwidth: float

    def slope(self, rival: str, mode: str) -> float | None:
        """The exponent of time over n from ``SLOPE_FROM_TOKENS`` up."""
        return log_log_slope(self.grid.timed(rival, mode), SLOPE_FROM_TOKENS)

    def time_ratio(self, rival: str, tokens: int, mode: str) -> float | None:
        """The time of a rival over that of softattn."""
        theirs, ours = self._pair(rival, tokens, mode)
        if theirs is None or ours is None or theirs.timing is None or ours.timing is None:
            return None
        return paired_ratio(theirs.timing, ours.timing)

    def memory_ratio(self, rival: str, tokens: int, mode: str) -> float | None:
        """The peak memory of a rival over that of softattn."""
        theirs, ours = self._pair(rival, tokens, mode)
        if theirs is None or ours is None or theirs.peak_bytes is None or not ours.peak_bytes:
            return None
        return theirs.peak_bytes / ours.peak_bytes

    def traffic_fraction(self, workload: Workload, mode: str) -> float | None:
        """The least time that softattn's traffic takes over the time that it took."""
        cell = self.grid.get(OURS, workload.tokens, mode)
        if cell is None or cell.timing is None:
            return None
        return traffic_bytes(workload, mode) / self.copy_bandwidth / cell.timing.median

    def as_json(self, workloads: list[Workload]) -> dict[str, Any]:
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
            "traffic_limit": [
                {
                    "tokens": workload.tokens,
                    "mode": mode,
                    "bytes": traffic_bytes(workload, mode),
                    "fraction": fraction,
                }
                for mode in MODES
                for workload in workloads
                if (fraction := self.traffic_fraction(workload, mode)) is not None
            ],
        }

    def _pair(self, rival: str, tokens: int, mode: str) -> tuple[Cell | None, Cell | None]:
        return self.grid.get(rival, tokens, mode), self.grid.get(OURS, tokens, mode)


def traffic_bytes(workload: Workload, mode: str) -> int:
    """What the streaming passes of softattn must read and write over the tokens."""
    elements = _FORWARD_ELEMENTS[workload.normalization]
    if mode == "forward+backward":
        elements += _BACKWARD_ELEMENTS[workload.normalization]
    features = workload.batch * workload.heads * workload.tokens * workload.head_dim
    return elements * features * DTYPES[workload.dtype].itemsize


def _cell_json(cell: Cell) -> dict[str, Any]:
    timing = cell.timing
    return {
        "rival": cell.rival,
        "tokens": cell.tokens,
        "mode": cell.mode,
        "skipped": cell.skipped,
        "median_seconds": None if timing is None else timing.median,
        "quartiles_seconds": None if timing is None else timing.quartiles,
        "rounds_seconds": None if timing is None else timing.rounds,
        "peak_bytes": cell.peak_bytes,
    }
