"""Newton's iteration for a batch of small matrices: one launch, all steps on chip."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from softattn.kernels import configurations, devices, launching
from softattn.kernels.launching import CHANGING, block_of

# Rows of the largest matrices that the table of tiles provides for.
LARGEST_SIZE = max(configurations.FLOAT32["newton"])


def newton(target: Tensor, start: Tensor, *, lower: float, steps: int) -> Tensor:
    """Steps V ← (2 c V − V A V) / c² with c = (1 + l) / 2 and l ← l (2 c − l) / c².

    They bring a spectrum of V A within [l, 1] close to 1; l = 1 is the plain iteration.

    Args:
        target: A, (matrices, m, m), float32, m up to ``LARGEST_SIZE``.
        start: the first V, likewise.
        lower: l.
        steps: how many, at least 1.

    Returns:
        The last V times 2 / (1 + l), (matrices, m, m), float32.
    """
    matrices, m, _ = target.shape
    device = devices.device_of(target.device)
    chosen = configurations.choose("newton", m, m, m, target.dtype, device)
    whole = chosen.tokens >= m
    # Matrices of more than one tile go back and forth between two buffers.
    inverse = torch.empty(
        1 if whole else 2, matrices, m, m, device=target.device, dtype=torch.float32
    )
    launching.launch(
        _newton if whole else _newton_in_tiles,
        (matrices,),
        dict(
            a_ptr=target.contiguous(),
            start_ptr=start.contiguous(),
            inverse_ptr=inverse,
            m=m,
            steps=steps,
            lower=lower,
            BLOCK=block_of(m),
            TILE=chosen.tokens,
            PRECISION=device.precision,
        ),
        chosen,
    )
    return inverse[0 if whole else steps % 2]


@triton.jit
def newton_coefficients(lower):
    """What a step takes of V and of V A V, and the next l.

    The same as ``softattn.common.newton_schedule``. Computed here, they take no copy to the device
    and no new compilation for another number of steps.
    """
    middle = (1 + lower) / 2
    square = middle * middle
    return 2 / middle, 1 / square, tl.minimum(lower * (2 * middle - lower) / square, 1.0)


@triton.jit(do_not_specialize=CHANGING)
def _newton(
    a_ptr,
    start_ptr,
    inverse_ptr,
    m,
    steps,
    lower,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All steps for one matrix. What lies beyond it is 0 in every term and stays so."""
    row = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * m * m + row[:, None] * m + row[None, :]
    mask = (row < m)[:, None] & (row < m)[None, :]
    # [BLOCK, BLOCK]
    a = tl.load(a_ptr + at, mask=mask, other=0.0)
    v = tl.load(start_ptr + at, mask=mask, other=0.0)
    for _ in range(steps):
        keep, subtract, lower = newton_coefficients(lower)
        va = tl.dot(v, a, input_precision=PRECISION)
        v = keep * v - subtract * tl.dot(va, v, input_precision=PRECISION)
    tl.store(inverse_ptr + at, v * (2 / (1 + lower)), mask=mask)


@triton.jit(do_not_specialize=CHANGING)
def _newton_in_tiles(
    a_ptr,
    start_ptr,
    inverse_ptr,
    m,
    steps,
    lower,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The same for a matrix that shared memory does not hold: V stays in the cache.

    Rows i of V A V are Σ_k (V_i A_k) V_k, with A_k columns of A and V_k rows of V.
    """
    matrix = tl.program_id(0).to(tl.int64) * m * m
    buffer = tl.num_programs(0).to(tl.int64) * m * m
    whole = tl.arange(0, BLOCK)
    part = tl.arange(0, TILE)
    mask = (whole < m)[:, None] & (whole < m)[None, :]
    at = matrix + whole[:, None] * m + whole[None, :]
    tl.store(inverse_ptr + at, tl.load(start_ptr + at, mask=mask), mask=mask)
    for step in range(steps):
        keep, subtract, lower = newton_coefficients(lower)
        unit = tl.where(step == steps - 1, 2 / (1 + lower), 1.0)
        here = (step % 2) * buffer + matrix
        there = ((step + 1) % 2) * buffer + matrix
        tl.debug_barrier()
        for i in range(0, m, TILE):
            rows = (i + part)[:, None] * m + whole[None, :]
            rows_mask = (i + part < m)[:, None] & (whole < m)[None, :]
            # [TILE, BLOCK]
            v = tl.load(inverse_ptr + here + rows, mask=rows_mask, other=0.0)
            vav = tl.zeros([TILE, BLOCK], tl.float32)
            for k in range(0, m, TILE):
                columns = whole[:, None] * m + (k + part)[None, :]
                columns_mask = (whole < m)[:, None] & (k + part < m)[None, :]
                # [BLOCK, TILE], [TILE, BLOCK]
                a_k = tl.load(a_ptr + matrix + columns, mask=columns_mask, other=0.0)
                below = (k + part)[:, None] * m + whole[None, :]
                below_mask = (k + part < m)[:, None] & (whole < m)[None, :]
                v_k = tl.load(inverse_ptr + here + below, mask=below_mask, other=0.0)
                va = tl.dot(v, a_k, input_precision=PRECISION)
                vav += tl.dot(va, v_k, input_precision=PRECISION)
            v = unit * (keep * v - subtract * vav)
            tl.store(inverse_ptr + there + rows, v, mask=rows_mask)
