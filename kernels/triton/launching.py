"""From tensors to a launch: pointers and strides."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

# The integers that change with the input. A kernel is compiled once for all of their values.
CHANGING = (
    *("n", "heads", "stretches", "stretches_of_middle", "length", "parts"),
    *("apart", "number", "size", "blocks", "steps"),
)
# A stride between rows with which the offsets in a tile of 256 rows fit into 32 bits.
_FARTHEST_ROW = 2**22


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: dict[str, object],
    configuration: tuple[int, int, int, int],
    *,
    fuse: bool = True,
) -> None:
    """Runs ``kernel`` on the device of its first tensor; an empty grid has nothing to run.

    ``configuration`` is a ``Configuration``, for its warps and stages. ``fuse`` is whether a
    product and a sum may become one operation. Threads that hold the same sum may then differ in
    its last bit, according to which of the products each has not rounded.
    """
    if 0 in grid:
        return
    device = next(a.device for a in arguments.values() if isinstance(a, Tensor))
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else nullcontext():
        *_, warps, stages = configuration
        kernel[grid](num_warps=warps, num_stages=stages, enable_fp_fusion=fuse, **arguments)


def rows_of(tensor: Tensor) -> Tensor:
    """The tensor itself where its features are adjacent and a tile's offsets are short.

    Otherwise a contiguous copy.
    """
    *_, row, feature = tensor.stride()
    adjacent = feature == 1 or tensor.shape[-1] == 1
    return tensor if adjacent and row <= _FARTHEST_ROW else tensor.contiguous()


def rows_argument(name: str, tensor: Tensor | None) -> dict[str, object]:
    """A kernel's pointer to ``rows_of`` a tensor (batch, heads, rows, columns), and its strides.

    For a tensor that a kernel runs without they are None and zeros. Outputs are of ``empty_rows``,
    of which ``rows_of`` makes no copy.
    """
    batch, head, row = 0, 0, 0
    if tensor is not None:
        tensor = rows_of(tensor)
        batch, head, row, _ = tensor.stride()
    return {f"{name}_ptr": tensor, f"{name}_batch": batch, f"{name}_head": head, f"{name}_row": row}


def empty_rows(columns: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for (batch, heads, rows, columns), in the order in which ``like`` is stored.

    A layer's heads are columns of its tokens. Outputs that are stored so become columns again
    without a copy, and so do gradients.

    Args:
        columns: of the result.
        like: (batch, heads, rows, any number).
        dtype: of the result; that of ``like`` by default.
    """
    batch, heads, rows, _ = like.shape
    dtype = dtype or like.dtype
    if like.stride(1) < like.stride(2) and heads * columns <= _FARTHEST_ROW:
        shape = (batch, rows, heads, columns)
        return torch.empty(shape, device=like.device, dtype=dtype).transpose(1, 2)
    return torch.empty((batch, heads, rows, columns), device=like.device, dtype=dtype)


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
