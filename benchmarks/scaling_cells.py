"""The cells of ``benchmarks.scaling``: a rival, a number of tokens and a mode each."""

import math
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from benchmarks.arguments import DTYPES
from benchmarks.memory import has_cpu_figure, peak_bytes_in_process, peak_bytes_of_call
from benchmarks.rivals import OURS, RIVALS
from benchmarks.timing import LEAST_CALLS, Timing, WarmCall, time_in_turns, warm_up
from benchmarks.workload import MODES, Workload


@dataclass
class Cell:
    """What is known of one rival at one number of tokens in one mode.

    skipped: why there is no timing: "time", "memory", "failed" or None.
    failure: what a rival raised that failed.
    peak_bytes: None where it was not measured.
    """

    rival: str
    workload: Workload
    mode: str
    timing: Timing | None = None
    skipped: str | None = None
    failure: str | None = None
    peak_bytes: int | None = None

    @property
    def tokens(self) -> int:
        """The number of tokens n."""
        return self.workload.tokens


@dataclass
class Grid:
    """All cells so far, by rival, tokens and mode."""

    cells: dict[tuple[str, int, str], Cell] = field(default_factory=dict)

    def add(self, cell: Cell) -> None:
        """Puts a cell in its place."""
        self.cells[cell.rival, cell.tokens, cell.mode] = cell

    def get(self, rival: str, tokens: int, mode: str) -> Cell | None:
        """The cell, or None where it was not reached."""
        return self.cells.get((rival, tokens, mode))

    def seconds_per_item(self, rival: str, mode: str) -> list[tuple[int, float]]:
        """The tokens and times per batch item of a rival, in the order they were measured."""
        return [
            (cell.tokens, cell.timing.median / cell.workload.batch)
            for cell in self.cells.values()
            if cell.rival == rival and cell.mode == mode and cell.timing is not None
        ]

    def largest(self, rival: str, mode: str) -> Cell | None:
        """A rival's cell with the most tokens."""
        cells = (c for c in self.cells.values() if (c.rival, c.mode) == (rival, mode))
        return max(cells, key=lambda cell: cell.tokens, default=None)

    def rivals(self) -> list[str]:
        """The rivals that have a cell."""
        return list(dict.fromkeys(cell.rival for cell in self.cells.values()))

    def tokens(self) -> list[int]:
        """The numbers of tokens that have a cell, ascending."""
        return sorted({cell.tokens for cell in self.cells.values()})


@dataclass(frozen=True)
class Budget:
    """What one cell may take.

    seconds: of time, for the warm-up and all rounds.
    memory_bytes: for arrays of n × n.
    """

    seconds: float
    memory_bytes: float

    def refuses(self, rival: str, workload: Workload, mode: str, grid: Grid) -> str | None:
        """Why a cell must be skipped, judged by its size and by the rival's last size.

        A time that is too long is measured again: it may have been the machine's mood.
        """
        blocks = RIVALS[rival].dense_blocks[MODES.index(mode)]
        block_bytes = workload.batch * workload.heads * workload.tokens**2
        if blocks * block_bytes * DTYPES[workload.dtype].itemsize > self.memory_bytes:
            return "memory"
        last = grid.largest(rival, mode)
        if last is None:
            return None
        if last.timing is None:
            # What failed at one size, with its large batch perhaps, may run at the next.
            return None if last.skipped == "failed" else last.skipped
        growth = (workload.tokens / last.tokens) ** RIVALS[rival].order
        growth *= workload.batch / last.workload.batch
        longest = self.seconds / LEAST_CALLS / growth
        if min(last.timing.rounds) > longest:
            again = _warm_call(rival, last.workload, mode)
            if again.seconds > longest:
                return "time"
        return None


def measure_times(
    rivals: list[str],
    workload: Workload,
    mode: str,
    *,
    grid: Grid,
    budget: Budget,
    rounds: int,
    memory: bool,
    done: Callable[[str], None],
) -> None:
    """Adds the cells of all rivals at one number of tokens to ``grid``, timed in turns.

    Other rivals than softattn may fail: their cell then says so. On CUDA ``memory`` asks for the
    peak memory too. ``done`` is told the name of each rival when its cell is finished.
    """
    if any(RIVALS[rival].compiled for rival in rivals):
        # What was compiled for other sizes counts towards a limit past which nothing compiles.
        torch.compiler.reset()
    cells = {}
    calls: dict[str, WarmCall] = {}
    for rival in rivals:
        cell = cells[rival] = Cell(rival, workload, mode)
        try:
            cell.skipped = budget.refuses(rival, workload, mode, grid)
            if cell.skipped is None:
                warm = _warm_call(rival, workload, mode)
                if memory and workload.device == "cuda":
                    cell.peak_bytes = peak_bytes_of_call(warm.call, workload.device)
                calls[rival] = warm
        except torch.OutOfMemoryError:
            cell.skipped = "memory"
        except Exception as error:
            # Packages and compilers raise what they like; the run goes on without them.
            if rival == OURS:
                raise
            cell.skipped, cell.failure = "failed", f"{type(error).__name__}: {error}"
        if cell.skipped is not None:
            done(rival)
    timings = time_in_turns(calls, rounds=rounds, seconds=budget.seconds, done=done)
    for rival, cell in cells.items():
        cell.timing = timings.get(rival)
        grid.add(cell)


def measure_cpu_memory(grid: Grid, done: Callable[[str], None]) -> None:
    """Fills in the peak memory of every timed cell whose peak can be told."""
    for cell in timed_cells(grid):
        if has_cpu_figure(cell.rival):
            try:
                cell.peak_bytes = peak_bytes_in_process(cell.rival, cell.workload, cell.mode)
            except subprocess.CalledProcessError as error:
                if error.returncode >= 0:
                    raise RuntimeError(f"{' '.join(error.cmd)} failed:\n{error.stderr}") from error
        done(f"{RIVALS[cell.rival].label}, n = {cell.tokens:,}")


def timed_cells(grid: Grid) -> Iterator[Cell]:
    """The cells that have a timing."""
    return (cell for cell in grid.cells.values() if cell.timing is not None)


def log_log_slope(measured: list[tuple[int, float]], from_tokens: int) -> float | None:
    """The exponent of time over n ≥ ``from_tokens``, by least squares; None under two sizes."""
    points = [(math.log(n), math.log(t)) for n, t in measured if n >= from_tokens]
    if len(points) < 2:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum(
        (x - mean_x) ** 2 for x, _ in points
    )


def _warm_call(rival: str, workload: Workload, mode: str) -> WarmCall:
    call = RIVALS[rival].prepare(workload)
    return warm_up(lambda: call.run(mode), workload.device, compiled=RIVALS[rival].compiled)
