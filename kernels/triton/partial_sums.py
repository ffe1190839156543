"""Sums over the stretches of a pass, whose programs write one partial sum each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from softattn.kernels import configurations, launching
from softattn.kernels.launching import CHANGING, ceil_div

_ELEMENTS, _STRETCHES = 64, 32
_CONFIGURATION = configurations.Configuration(_STRETCHES, 0, warps=4, stages=1)
# One program reads so many partial sums in a few microseconds.
_FEW = 32


def few_stretches(partial: Tensor) -> Tensor:
    """Partial sums that one program for each pair can add: added already where they are many."""
    return partial if partial.shape[2] <= _FEW else add_stretches(partial)[:, :, None]


def add_stretches(
    partial: Tensor,
    dtype: torch.dtype = torch.float32,
    *,
    start: Tensor | None = None,
    subtract: bool = False,
) -> Tensor:
    """Adds (batch, heads, stretches, rows, columns) over the stretches, in a fixed order.

    Args:
        partial: float32.
        dtype: of the result.
        start: (batch, heads, rows, columns), to which the sum is added; None is 0.
        subtract: whether the sum is subtracted from it instead.
    """
    batch, heads, stretches, rows, columns = partial.shape
    if stretches == 1 and dtype == partial.dtype and start is None:
        return partial[:, :, 0]
    total = torch.empty((batch, heads, rows, columns), device=partial.device, dtype=dtype)
    size = rows * columns
    blocks = ceil_div(size, _ELEMENTS)
    launching.launch(
        _add_stretches,
        (batch * heads * blocks,),
        dict(
            partial_ptr=partial.contiguous(),
            start_ptr=None if start is None else start.contiguous(),
            total_ptr=total,
            size=size,
            stretches=stretches,
            blocks=blocks,
            SIGN=-1 if subtract else 1,
            ELEMENTS=_ELEMENTS,
            STRETCHES=_STRETCHES,
        ),
        _CONFIGURATION,
    )
    return total


@triton.jit(do_not_specialize=CHANGING)
def _add_stretches(
    partial_ptr, start_ptr, total_ptr, size, stretches, blocks,
    SIGN: tl.constexpr, ELEMENTS: tl.constexpr, STRETCHES: tl.constexpr,
):  # fmt: skip
    """A block of elements of one pair."""
    program = tl.program_id(0).to(tl.int64)
    pair = program // blocks
    element = program % blocks * ELEMENTS + tl.arange(0, ELEMENTS)
    partial_ptr += pair * stretches * size
    total = tl.zeros([ELEMENTS], tl.float32)
    for first in range(0, stretches, STRETCHES):
        stretch = first + tl.arange(0, STRETCHES).to(tl.int64)
        mask = (stretch < stretches)[:, None] & (element < size)[None, :]
        at = partial_ptr + stretch[:, None] * size + element[None, :]
        total += tl.sum(tl.load(at, mask=mask, other=0.0), 0)
    element_of_all = pair * size + element
    total *= SIGN
    if start_ptr is not None:
        start = tl.load(start_ptr + element_of_all, mask=element < size, other=0.0)
        total += start.to(tl.float32)
    result = total.to(total_ptr.dtype.element_ty)
    tl.store(total_ptr + element_of_all, result, mask=element < size)
