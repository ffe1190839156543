"""From tensors to a launch: strides, stretches of tokens, and what a kernel may use of a device."""

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from softattn.kernels.arithmetic import INTERPRETED

# Programs that a launch is cut into for each multiprocessor, so that none of them waits long.
_PROGRAMS_PER_MULTIPROCESSOR = 8
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
    *arguments: object,
    warps: int,
    stages: int,
    **constants: object,
) -> None:
    """Runs ``kernel`` on the device of its first argument; an empty grid has nothing to run."""
    if 0 in grid:
        return
    first = arguments[0]
    assert isinstance(first, Tensor)
    with torch.cuda.device(first.device if first.is_cuda else -1):
        kernel[grid](
            *arguments, num_warps=warps, num_stages=stages, enable_fp_fusion=True, **constants
        )


def rows_of(tensor: Tensor) -> Tensor:
    """The tensor itself where its features are adjacent and a tile's offsets are short.

    Otherwise a contiguous copy.
    """
    adjacent = tensor.stride(-1) == 1 or tensor.shape[-1] == 1
    near = tensor.stride(-2) <= _FARTHEST_ROW
    return tensor if adjacent and near else tensor.contiguous()


def padding_of(mask: Tensor | None) -> Tensor | None:
    """A mask as a kernel reads it.

    Triton takes a product whose factors are loaded under a mask of bytes for one of bytes itself,
    and gives up the layout that the matrix units load at once.
    """
    return None if mask is None else mask.to(torch.int32, memory_format=torch.contiguous_format)


def strides_of(tensor: Tensor | None) -> tuple[int, int, int]:
    """Strides of batch, heads and tokens; zeros for a tensor that a kernel does without."""
    if tensor is None:
        return 0, 0, 0
    batch, heads, tokens, _ = tensor.stride()
    return batch, heads, tokens


def stretches(tokens: int, block: int, others: int, device: Device) -> tuple[int, int]:
    """How many stretches ``tokens`` are cut into, and the length of one, a multiple of ``block``.

    ``others`` is the number of programs that a launch has for each stretch.
    """
    blocks = max(triton.cdiv(tokens, block), 1)
    wanted = math.ceil(device.multiprocessors * _PROGRAMS_PER_MULTIPROCESSOR / max(others, 1))
    length = triton.cdiv(blocks, min(wanted, blocks))
    return triton.cdiv(blocks, length), length * block


def block_of(size: int) -> int:
    """The power of two, at least 16, that holds ``size`` columns of a tile."""
    return max(16, triton.next_power_of_2(size))


__all__ = [
    "INTERPRETED",
    "Device",
    "block_of",
    "device_of",
    "launch",
    "padding_of",
    "rows_of",
    "stretches",
    "strides_of",
]
