"""The cells of ``benchmarks.scaling``: an attention, a number of tokens and a mode each."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from benchmarks.common.arguments import DTYPES
from benchmarks.common.calls import MODES, Call
from benchmarks.common.timing import Timing, WarmCall, least_calls, time_in_turns, warm_up
from benchmarks.common.token_maps import exact_rows, relative_error, sampled_rows
from benchmarks.scaling.memory import peak_bytes_of_call
from benchmarks.scaling.rivals import OURS, RIVALS
from benchmarks.scaling.workload import Workload

_SAMPLED_ROWS = 256


@dataclass
class Cell:
    """What is known of one attention at one number of tokens in one mode.

    timing: None where the cell was skipped.
    skipped: why: "time", "memory" or "failed".
    failure: the exception of an attention that failed.
    peak_bytes: None where it was not measured.
    error: of softattn's output against its exact counterpart, in the mode "forward".
    """

    rival: str
    workload: Workload
    mode: str
    timing: Timing | None = None
    skipped: str | None = None
    failure: str | None = None
    peak_bytes: int | None = None
    error: float | None = None

    @property
    def tokens(self) -> int:
        """The number of tokens n."""
        return self.workload.tokens

    @property
    def seconds(self) -> float | None:
        """The median time of a call."""
        return None if self.timing is None else self.timing.median


@dataclass
class Grid:
    """All cells so far, by attention, tokens and mode."""

    cells: dict[tuple[str, int, str], Cell] = field(default_factory=dict)

    def add(self, cell: Cell) -> None:
        """Puts a cell in its place."""
        self.cells[cell.rival, cell.tokens, cell.mode] = cell

    def get(self, rival: str, tokens: int, mode: str) -> Cell | None:
        """The cell, or None where it was not reached."""
        return self.cells.get((rival, tokens, mode))

    def row(self, rival: str, mode: str) -> list[Cell]:
        """The cells of an attention in a mode, from few tokens to many."""
        cells = (c for c in self.cells.values() if (c.rival, c.mode) == (rival, mode))
        return sorted(cells, key=lambda cell: cell.tokens)

    def rivals(self) -> list[str]:
        """The attentions that have a cell."""
        return list(dict.fromkeys(cell.rival for cell in self.cells.values()))

    def tokens(self) -> list[int]:
        """The numbers of tokens that have a cell, ascending."""
        return sorted({cell.tokens for cell in self.cells.values()})

    def timed(self) -> list[Cell]:
        """The cells that have a timing."""
        return [cell for cell in self.cells.values() if cell.timing is not None]


@dataclass(frozen=True)
class Budget:
    """The limits of one cell.

    seconds: for the warm-up and all rounds.
    memory_bytes: for arrays of n × n.
    """

    seconds: float
    memory_bytes: float

    def refuses(self, rival: str, workload: Workload, mode: str, grid: Grid) -> str | None:
        """Why a cell must be skipped, judged by its size and by the time at the last size.

        A time that is too long is measured again, since it may be noise.
        """
        blocks = RIVALS[rival].dense_blocks[MODES.index(mode)]
        block_bytes = workload.batch * workload.heads * workload.tokens**2
        if blocks * block_bytes * DTYPES[workload.dtype].itemsize > self.memory_bytes:
            return "memory"
        row = grid.row(rival, mode)
        if not row:
            return None
        last = row[-1]
        if last.timing is None:
            # An attention that failed at one size may run at the next, with its smaller batch.
            return None if last.skipped == "failed" else last.skipped
        growth = (workload.tokens / last.tokens) ** RIVALS[rival].order
        growth *= workload.batch / last.workload.batch
        longest = self.seconds / least_calls(workload.device) / growth
        if min(last.timing.rounds) > longest:
            again, _ = _warm_call(rival, last.workload, mode)
            if again.seconds > longest:
                return "time"
        return None


def measure_cells(
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
    """Adds the cells of all attentions at one number of tokens to ``grid``, timed in turns.

    If an attention other than softattn fails, its cell says so. ``memory`` asks for the peak memory
    on CUDA. ``done`` is called with the name of each attention when its cell is finished.
    """
    if any(RIVALS[rival].compiled for rival in rivals):
        # Compilations for other sizes count towards a limit after which PyTorch compiles no more.
        torch.compiler.reset()
    cells = [Cell(rival, workload, mode) for rival in rivals]
    calls: dict[str, WarmCall] = {}
    for cell in cells:
        try:
            cell.skipped = budget.refuses(cell.rival, workload, mode, grid)
            if cell.skipped is None:
                calls[cell.rival] = _start(cell, memory)
        except torch.OutOfMemoryError:
            cell.skipped = "memory"
        except Exception as error:
            # Packages and compilers raise anything; the run goes on without them.
            if cell.rival == OURS:
                raise
            cell.skipped, cell.failure = "failed", f"{type(error).__name__}: {error}"
        if cell.skipped is not None:
            done(cell.rival)
    timings = time_in_turns(calls, rounds=rounds, seconds=budget.seconds, done=done)
    for cell in cells:
        cell.timing = timings.get(cell.rival)
        grid.add(cell)


def error_of(call: Call, workload: Workload) -> float | None:
    """The error of softattn's output against the exact attention that it approximates.

    It is measured in the first batch item on a sample of rows, in float64. None for "landmark",
    which approximates no attention without landmarks.
    """
    if workload.normalization == "landmark":
        return None
    with torch.no_grad():
        output = call.forward()[:1]
        query, value = (x[:1] for x in call.inputs[:2])
        generator = torch.Generator().manual_seed(workload.seed)
        rows = sampled_rows(workload.tokens, _SAMPLED_ROWS, generator).to(workload.device)
        if workload.normalization == "softmax":
            query, value = query.double(), value.double()
            truth = F.scaled_dot_product_attention(query[:, :, rows], query, value)
        else:
            normalize = workload.normalization == "token"
            truth = exact_rows(query, value, rows, normalize=normalize)
    return relative_error(output[:, :, rows], truth)


def _start(cell: Cell, memory: bool) -> WarmCall:
    """Warms a call up, and measures what needs no repetition."""
    warm, call = _warm_call(cell.rival, cell.workload, cell.mode)
    if memory and cell.workload.device == "cuda":
        cell.peak_bytes = peak_bytes_of_call(warm.call, cell.workload.device)
    if (cell.rival, cell.mode) == (OURS, "forward"):
        cell.error = error_of(call, cell.workload)
    return warm


def _warm_call(rival: str, workload: Workload, mode: str) -> tuple[WarmCall, Call]:
    call = RIVALS[rival].prepare(workload)
    compiled = RIVALS[rival].compiled
    return warm_up(lambda: call.run(mode), workload.device, compiled=compiled), call
