"""Time and peak memory of one attention call, each method in a process of its own."""

import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.quickstart.processes import worker_processes

Grid = tuple[int, int]
Attention = Callable[[Tensor, Grid], Tensor]

WARM_UP_GRID = (16, 16)
MOST_REPETITIONS = 5
REPEAT_FOR_SECONDS = 2.0


@dataclass(frozen=True)
class Method:
    """An attention whose time grows as n to the ``exponent``."""

    attention: Attention
    exponent: int


@dataclass(frozen=True)
class Cost:
    """The cost of one call, or an estimate if the call was skipped.

    method: its name.
    grid: height and width of the photograph.
    seconds: of the fastest repetition; an estimate if ``skipped``.
    peak_mib: memory that the call and its input added to the process; None if ``skipped``.
    skipped: whether the call would have taken too long.
    """

    method: str
    grid: Grid
    seconds: float
    peak_mib: float | None
    skipped: bool = False

    @property
    def tokens(self) -> int:
        """The number of tokens n."""
        return math.prod(self.grid)


def measure_costs(
    methods: Mapping[str, Method], inputs: Mapping[Grid, Tensor], limit_seconds: float
) -> Iterator[Cost]:
    """Measures each method on each input, the smallest input first.

    A process gets its inputs in growing order, so that the peak memory of the process is that of
    the current input.

    Args:
        methods: by name.
        inputs: tokens (1, 1, n, D) by grid.
        limit_seconds: a call that should take longer, extrapolated from the last one, is skipped.

    Yields:
        The costs as they are measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for grid in sorted(inputs):
            files[grid] = Path(folder, f"{grid[0]}x{grid[1]}.npy")
            np.save(files[grid], inputs[grid].numpy())
        for name, method in methods.items():
            with worker_processes(1, torch.get_num_threads()) as process:
                resident = process.apply(_warm_up, (method.attention,))
                last: Cost | None = None
                for grid, file in files.items():
                    growth = math.prod(grid) / last.tokens if last else 0.0
                    estimate = last.seconds * growth**method.exponent if last else 0.0
                    if estimate > limit_seconds:
                        last = Cost(name, grid, estimate, None, skipped=True)
                    else:
                        seconds, peak = process.apply(_measure, (method.attention, file, grid))
                        last = Cost(name, grid, seconds, max(peak - resident, 0) / 2**20)
                    yield last


def _warm_up(attention: Attention) -> int:
    """Runs ``attention`` on few tokens; returns the bytes that the process then holds."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        tokens = torch.randn(1, 1, math.prod(WARM_UP_GRID), 32, generator=generator)
        attention(tokens, WARM_UP_GRID)
    return _memory("VmRSS")


def _measure(attention: Attention, file: Path, grid: Grid) -> tuple[float, int]:
    """Least seconds of ``attention``, and peak bytes of the process."""
    tokens = torch.from_numpy(np.load(file))
    seconds: list[float] = []
    while len(seconds) < MOST_REPETITIONS and sum(seconds) < REPEAT_FOR_SECONDS:
        start = time.perf_counter()
        attention(tokens, grid)
        seconds.append(time.perf_counter() - start)
    return min(seconds), _memory("VmHWM")


def _memory(field: str) -> int:
    """Bytes held now ("VmRSS") or at most so far ("VmHWM"); on macOS always the latter."""
    # Not ru_maxrss on Linux: a child inherits it from its parent, so it would start too high.
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines[field].split()[0]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
