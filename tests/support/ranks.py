"""Runs checks in several processes that share sequences, each check on groups of 2, 3 and 4 ranks.

Processes take seconds to start: one set of them runs all checks, and each test reads how its own
went. Processes import the checks' file by its name.
"""

import gc
import importlib.util
import traceback
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

WORLD = 4
# A failure on one rank leaves the others waiting for it.
TIMEOUT = timedelta(seconds=20)


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
        total = tensor.detach().clone()
        dist.all_reduce(total, group=self.group)
        return total


def run(file: str, folder: Path) -> None:
    """Runs every function of a file whose name begins with ``check_`` in ``WORLD`` processes."""
    mp.spawn(_work, args=(file, str(folder)), nprocs=WORLD)


def outcomes(folder: Path, name: str) -> list[str]:
    """How a check went on each rank: ``"passed"``, a traceback, or that an earlier one failed."""
    files = [folder / f"{name}.{rank}" for rank in range(WORLD)]
    return [file.read_text() if file.exists() else "an earlier check failed" for file in files]


def checks_of(file: str) -> dict[str, object]:
    """The checks of a file by name."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: check for name, check in vars(module).items() if name.startswith("check_")}


def _work(rank: int, file: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=WORLD,
        timeout=TIMEOUT,
    )
    try:
        groups = {size: dist.new_group(list(range(size))) for size in (2, 3, WORLD)}
        ranks = [Ranks(group, size, rank) for size, group in groups.items() if rank < size]
        for name, check in checks_of(file).items():
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
