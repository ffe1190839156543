"""From tensors to a launch: pointers and strides."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor
from torch.torch_version import TorchVersion

if TYPE_CHECKING:
    from softattn.kernels.configurations import Configuration

# The integers that change with the input. A kernel is compiled once for all of their values.
CHANGING = (
    *("n", "heads", "stretches", "stretches_of_middle", "length", "parts", "run"),
    *("apart", "number", "size", "blocks", "steps"),
)
# A stride between rows with which the offsets in a tile of 256 rows fit into 32 bits.
_FARTHEST_ROW = 2**22
# Before, compiled kernels take those alone that they are not compiled for.
_TAKES_ALL_ARGUMENTS = TorchVersion(triton.__version__) >= "3.3"


class _Observer(threading.local):
    """Who is told of the launches of this thread."""

    add: Callable[[Callable[..., object], list[Any]], None] | None = None


_OBSERVER = _Observer()


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: dict[str, object],
    configuration: "Configuration",
    *,
    fuse: bool = True,
) -> None:
    """Runs ``kernel`` on the device of its first tensor; an empty grid has nothing to run.

    ``fuse`` is whether a product and a sum may become one operation. Threads that hold the same sum
    may then differ in its last bit, according to which of the products each has not rounded.
    """
    if 0 in grid:
        return
    options = {"enable_fp_fusion": fuse, **configuration.options}
    with on_device(next(a.device for a in arguments.values() if isinstance(a, Tensor))):
        if _OBSERVER.add is None:
            kernel[grid](**options, **arguments)
            return
        # Operations of Triton's interpreter are no concern of an observer.
        with torch._C._DisableTorchDispatch():
            compiled = kernel[grid](**options, **arguments)
    run: Callable[..., object] = functools.partial(kernel[grid], **options)
    if compiled is not None and _TAKES_ALL_ARGUMENTS:
        run = compiled[(*grid, 1, 1)[:3]]
    _OBSERVER.add(run, [arguments[name] for name in kernel.arg_names])


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes ``device`` the one on which kernels are launched."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return nullcontext()


@contextmanager
def observed_by(add: Callable[[Callable[..., object], list[Any]], None]) -> Iterator[None]:
    """Calls ``add(run, arguments)`` after each launch of this thread, which both repeat.

    ``run(*arguments)`` may have other tensors of the same form, or other numbers where a kernel is
    not compiled for its number.
    """
    before, _OBSERVER.add = _OBSERVER.add, add
    try:
        yield
    finally:
        _OBSERVER.add = before


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
    head, row = rows * columns, columns
    if like.stride(1) < like.stride(2) and heads * columns <= _FARTHEST_ROW:
        head, row = columns, heads * columns
    return torch.empty_strided(
        (batch, heads, rows, columns),
        (heads * rows * columns, head, row, 1),
        device=like.device,
        dtype=dtype or like.dtype,
    )


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
