"""From tensors to a launch: pointers, strides, and what a kernel may use of a device."""

import functools
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

# The integers that change with the input. A kernel is compiled once for all of their values.
CHANGING = (
    *("n", "heads", "stretches", "stretches_of_middle", "length", "parts", "run"),
    *("apart", "number", "size", "blocks", "steps"),
)
# A stride between rows with which the offsets in a tile of 256 rows fit into 32 bits.
_FARTHEST_ROW = 2**22


class Device(NamedTuple):
    """What a launch must know of a device.

    multiprocessors: how many.
    shared_memory: bytes that one program may have.
    precision: how its matrix units multiply float32 without losing its digits.
    generation: the first number of its compute capability, 0 for AMD.
    """

    multiprocessors: int
    shared_memory: int
    precision: str
    generation: int


@functools.cache
def device_of(device: torch.device) -> Device:
    """The device's properties; for the interpreter those of the smallest card that is supported."""
    if device.type != "cuda":
        return Device(multiprocessors=1, shared_memory=99 * 1024, precision="tf32x3", generation=8)
    properties = triton.runtime.driver.active.utils.get_device_properties(
        torch.cuda.current_device() if device.index is None else device.index
    )
    return Device(
        multiprocessors=properties["multiprocessor_count"],
        shared_memory=properties["max_shared_mem"],
        precision="ieee" if torch.version.hip else "tf32x3",
        generation=0 if torch.version.hip else torch.cuda.get_device_capability(device)[0],
    )


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: dict[str, object],
    configuration: tuple[int, int, int, int],
) -> None:
    """Runs ``kernel`` on the device of its first tensor; an empty grid has nothing to run.

    ``configuration`` is a ``Configuration``, for its warps and stages.
    """
    if 0 in grid:
        return
    device = next(a.device for a in arguments.values() if isinstance(a, Tensor))
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else nullcontext():
        *_, warps, stages = configuration
        kernel[grid](num_warps=warps, num_stages=stages, enable_fp_fusion=True, **arguments)


def rows_of(tensor: Tensor) -> Tensor:
    """The tensor itself where its features are adjacent and a tile's offsets are short.

    Otherwise a contiguous copy.
    """
    *_, row, feature = tensor.stride()
    adjacent = feature == 1 or tensor.shape[-1] == 1
    return tensor if adjacent and row <= _FARTHEST_ROW else tensor.contiguous()


def rows_argument(name: str, tensor: Tensor | None) -> dict[str, object]:
    """A kernel's pointer to ``rows_of`` a tensor (batch, heads, rows, columns), and its strides.

    For a tensor that a kernel runs without they are None and zeros.
    """
    batch, head, row = 0, 0, 0
    if tensor is not None:
        tensor = rows_of(tensor)
        batch, head, row, _ = tensor.stride()
    return {f"{name}_ptr": tensor, f"{name}_batch": batch, f"{name}_head": head, f"{name}_row": row}


def padding_argument(mask: Tensor | None) -> Tensor | None:
    """A mask as the kernels read it, in whole words.

    Where factors are loaded under a mask of bytes, Triton takes their product for one of bytes and
    does not choose the layout that the matrix units load at once.
    """
    return None if mask is None else mask.to(torch.int32, memory_format=torch.contiguous_format)


def block_of(size: int) -> int:
    """The power of two, at least 16, that holds ``size`` columns of a tile."""
    return max(16, 1 << max(size - 1, 0).bit_length())


def ceil_div(number: int, divisor: int) -> int:
    """Quotient, rounded up. Triton's own takes longer than a launch may."""
    return -(-number // divisor)
