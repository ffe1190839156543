"""One tile on a GPU: whether the kernel is right with it, and how long it takes.

A compiler can be wrong for one tile and right for all others, so no tile is timed before its
results equal those of the smallest one.
"""

import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.cases import Case
from benchmarks.kernels.compilation import with_tile

Tile = tuple[int, int, int, int]
SMALLEST: Tile = (16, 16, 4, 1)
# Tokens of a head that show a fault, and that fill a GPU.
_FEW, _MANY = 2**12, 2**19
# The pieces of half precision and the order of sums differ from tile to tile.
_MOST_DIFFERENCE = 0.02


def checked(
    cases: Iterable[tuple[Case, Tile | None]], processes: int
) -> Iterator[tuple[Case, Tile | None, str | None]]:
    """What is wrong with each tile, None where nothing is; None for a tile is the table's.

    Each is run in a process of its own, which a fault ends. All that they compile is in Triton's
    cache afterwards.
    """
    cases = list(cases)
    context = multiprocessing.get_context("spawn")
    # The results of the smallest tile are compiled first, once.
    for batch in ([(case, SMALLEST) for case in dict.fromkeys(c for c, _ in cases)], cases):
        with ProcessPoolExecutor(processes, context, max_tasks_per_child=1) as executor:
            futures = [executor.submit(fault, case, tile) for case, tile in batch]
            for (case, tile), future in zip(batch, futures, strict=True):
                try:
                    found = future.result()
                except BrokenProcessPool as error:
                    found = str(error)
                if batch is cases:
                    yield case, tile, found


def fault(case: Case, tile: Tile | None, device: str = "cuda", tokens: int = _FEW) -> str | None:
    """What is wrong with a tile, or None."""
    case = replace(case, tokens=tokens, device=device)
    try:
        expected = _results(case, SMALLEST)
        for _ in range(3):
            for a, e in zip(_results(case, tile), expected, strict=True):
                difference = float((a - e).abs().max() / e.abs().max())
                if not difference <= _MOST_DIFFERENCE:
                    return f"differs by {difference:.2g} of the largest entry"
    except Exception as error:  # a tile that the compiler or the device refuses
        return f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return None


def seconds(case: Case, tile: Tile | None) -> float:
    """Seconds of a call on many tokens, by the replay of a CUDA graph."""
    from triton.testing import do_bench_cudagraph

    call = replace(case, tokens=_MANY, device="cuda").call()
    with nullcontext() if tile is None else with_tile(tile):
        call()
        return float(do_bench_cudagraph(call, rep=20, return_mode="median")) / 1e3


def _results(case: Case, tile: Tile | None) -> list[Tensor]:
    """What a call returns, always for the same numbers."""
    torch.manual_seed(0)
    call = case.call()
    with nullcontext() if tile is None else with_tile(tile):
        # On the CPU, where an asynchronous fault would show.
        return [tensor.cpu() for tensor in _tensors(call())]


def _tensors(returned: Any) -> list[Tensor]:
    """All tensors that a launcher returned, those of stretches added up, in float32."""
    from softattn.kernels import Pieces

    if isinstance(returned, Pieces) and returned.rest is not None:
        return [returned.first.float() + returned.rest.float()]
    if isinstance(returned, Tensor):
        # The number of stretches follows the tile.
        return [returned.float().sum(2) if returned.ndim == 5 else returned.float()]
    if isinstance(returned, tuple):
        return [tensor for part in returned for tensor in _tensors(part)]
    return []
