"""Loaders of the samples that one of several processes works on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from examples.training.interruption import leave_interruption_to_parent


@dataclass(frozen=True)
class Share:
    """The part of the work that one process does.

    process: index of the process.
    processes: number of processes.
    workers: number of its own processes that read images.
    pin_memory: whether batches will be copied to a GPU.
    """

    process: int = 0
    processes: int = 1
    workers: int = 0
    pin_memory: bool = False

    @classmethod
    def of(cls, accelerator: Accelerator, workers: int) -> Self:
        """The share of this process."""
        on_gpu = accelerator.device.type == "cuda"
        return cls(accelerator.process_index, accelerator.num_processes, workers, on_gpu)


def load(
    samples: Dataset[Any], share: Share, collate: Callable[[list[Any]], Any], **batches: Any
) -> DataLoader[Any]:
    """A loader whose workers end with this process, and not by a signal.

    Args:
        samples: to read.
        share: of this process.
        collate: makes a batch of several samples.
        batches: options of ``DataLoader`` that say what is in a batch.
    """
    return DataLoader(
        samples,
        **batches,
        num_workers=share.workers,
        pin_memory=share.pin_memory,
        collate_fn=collate,
        worker_init_fn=leave_interruption_to_parent,
    )
