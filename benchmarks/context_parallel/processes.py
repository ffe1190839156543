"""One sequence over several processes of this machine: time, memory and bytes of each process."""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.multiprocessing.spawn import spawn

from benchmarks.scaling.memory import peak_bytes_of_call
from softattn import AvgPoolLandmarks, softmax_free_attention

_WARM_UP_TOKENS = 64


@dataclass(frozen=True)
class Workload:
    """Self-attention of random tokens.

    heads, features: H and d, of queries and of values.
    landmarks: m, means over cells.
    normalization: see ``softmax_free_attention``.
    """

    heads: int
    features: int
    landmarks: int
    normalization: str


@dataclass(frozen=True)
class Cell:
    """Forward and backward of one sequence.

    tokens: n of the sequence.
    ranks: the processes that share it.
    seconds: the median over the rounds of the slowest process's time.
    cpu_seconds: likewise of the time that a process computes, which others on the machine do not
        lengthen much: about ``seconds`` where each process has a core.
    peak_bytes: of the process with the most, over what it had before, with inputs and gradients.
    given_bytes: what each process gives to collectives, forward and backward.
    collectives: how many.
    """

    tokens: int
    ranks: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    given_bytes: int
    collectives: int


def measure(workload: Workload, tokens: Sequence[int], ranks: int, rounds: int) -> list[Cell]:
    """Measures sequences of each length over so many processes of one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_work, args=(folder, workload, tokens, ranks, rounds), nprocs=ranks)
        found = json.loads(Path(folder, "cells.json").read_text())
    return [Cell(**cell) for cell in found]


class _GivenBytes(CommDebugMode):
    """Counts the bytes that this process gives to collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "_c10d_functional" and "wait_tensor" not in func.name():
            self.bytes += args[0].numel() * args[0].element_size()
        return super().__torch_dispatch__(func, types, args, kwargs)


def _work(
    rank: int,
    folder: str,
    workload: Workload,
    tokens: Sequence[int],
    ranks: int,
    rounds: int,
) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=ranks)
    try:
        _forward_and_backward(workload, *_inputs(workload, _WARM_UP_TOKENS))
        cells = [_measure(workload, n, rounds) for n in tokens]
        if rank == 0:
            text = json.dumps([asdict(cell) for cell in cells])
            Path(folder, "cells.json").write_text(text)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _measure(workload: Workload, tokens: int, rounds: int) -> Cell:
    ranks = dist.get_world_size()
    own = tokens // ranks + (dist.get_rank() < tokens % ranks)
    # What the allocator holds back adds to a peak, and differs from call to call.
    peak = min(
        peak_bytes_of_call(lambda: _forward_and_backward(workload, *_inputs(workload, own)), "cpu")
        for _ in range(3)
    )
    inputs = _inputs(workload, own)
    with _GivenBytes() as given:
        _forward_and_backward(workload, *inputs)
    seconds, cpu_seconds = [], []
    for _ in range(rounds):
        dist.barrier()
        start, cpu_start = time.perf_counter(), time.process_time()
        _forward_and_backward(workload, *inputs)
        elapsed, computed = time.perf_counter() - start, time.process_time() - cpu_start
        seconds.append(_most(elapsed))
        cpu_seconds.append(_most(computed))
    return Cell(
        tokens=tokens,
        ranks=ranks,
        seconds=statistics.median(seconds),
        cpu_seconds=statistics.median(cpu_seconds),
        peak_bytes=int(_most(peak)),
        given_bytes=given.bytes,
        collectives=given.get_total_counts(),
    )


def _inputs(workload: Workload, own: int) -> tuple[Tensor, Tensor]:
    shape = (1, workload.heads, own, workload.features)
    return torch.randn(shape, requires_grad=True), torch.randn(shape, requires_grad=True)


def _forward_and_backward(workload: Workload, query: Tensor, value: Tensor) -> None:
    query.grad = value.grad = None
    world = dist.group.WORLD
    assert world is not None
    group = world.group_name
    sampler = AvgPoolLandmarks(workload.landmarks)
    landmarks, padding = sampler.forward_over_ranks(query, group=group)
    output = softmax_free_attention(
        query,
        None,
        value,
        landmarks,
        normalization=workload.normalization,
        landmark_padding_mask=padding,
        group=group,
    )
    output.sum().backward()


def _most(number: float) -> float:
    """The largest of all processes' numbers."""
    largest = torch.tensor(float(number), dtype=torch.float64)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.item()
