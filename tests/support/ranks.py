"""Runs checks in several processes that share sequences, each check on groups of 2, 3 and 4 ranks.

Processes take seconds to start: one set of them runs all checks.
"""

import contextlib
import gc
import importlib
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

WORLD = 4
# A failure on one rank leaves the others waiting for it.
TIMEOUT = timedelta(seconds=90)


@dataclass(frozen=True)
class Ranks:
    """This process in a group of processes.

    group: the process group of ranks 0 to size − 1.
    size: their number.
    rank: this one.
    """

    group: dist.ProcessGroup
    size: int
    rank: int

    def part(self, tokens: Tensor, lengths: list[int], dim: int) -> Tensor:
        """This rank's part of tokens that every process has, as a leaf."""
        part = tokens.detach().split(lengths, dim)[self.rank].clone()
        return part.requires_grad_(tokens.requires_grad)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks."""
        # Gradients of convolutions may have other strides on other ranks.
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        return total


def fresh_groups() -> list[Ranks]:
    """New groups of 2, 3 and 4 ranks that this process belongs to; all processes make them."""
    groups = {size: dist.new_group(list(range(size)), timeout=TIMEOUT) for size in (2, 3, WORLD)}
    rank = dist.get_rank()
    return [Ranks(group, size, rank) for size, group in groups.items() if rank < size]


def run(modules: list[str], folder: Path) -> dict[str, list[str]]:
    """Runs the checks of some modules in ``WORLD`` processes, until one fails.

    A check is a function whose name begins with ``check_``. It gets ``Ranks`` of each group that
    the process belongs to.

    Returns:
        For each check how it went on each rank: ``"passed"`` or a traceback.
    """
    with contextlib.suppress(mp.ProcessExitedException, mp.ProcessRaisedException):
        mp.spawn(_work, args=(modules, str(folder)), nprocs=WORLD)
    return {
        name: [
            file.read_text() if (file := folder / f"{name}.{rank}").exists() else "did not end"
            for rank in range(WORLD)
        ]
        for name in _checks_of(modules)
    }


def _checks_of(modules: list[str]) -> dict[str, Callable[[list[Ranks]], None]]:
    return {
        f"{name.rpartition('.')[2]}.{check}": function
        for name in modules
        for check, function in vars(importlib.import_module(name)).items()
        if check.startswith("check_")
    }


def _work(rank: int, modules: list[str], folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["TRITON_INTERPRET"] = "1"  # for those that ask for Triton
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=WORLD,
        timeout=TIMEOUT,
    )
    try:
        ranks = fresh_groups()
        for name, check in _checks_of(modules).items():
            try:
                check(ranks)
            except Exception:
                # The other ranks wait for this one, and end with it.
                Path(folder, f"{name}.{rank}").write_text(traceback.format_exc())
                return
            Path(folder, f"{name}.{rank}").write_text("passed")
        # FSDP keeps its groups in a cycle; their threads must end before the interpreter does.
        gc.collect()
        dist.barrier()
    finally:
        dist.destroy_process_group()
