"""Newton's iteration for a batch of small matrices: one launch, all steps on chip."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from softattn.kernels import launching
from softattn.kernels.configurations import choose
from softattn.kernels.launching import block_of

LARGEST_SIZE = 128


def newton_minimax(target: Tensor, *, lower: float, steps: int) -> Tensor:
    """From V = I / ‖A‖∞, steps V ← (2 c V − V A V) / c² for a spectrum of V A in [l, 1].

    c = (1 + l) / 2 and l ← l (2 c − l) / c², as ``softattn.newton_pinv`` explains.

    Args:
        target: A, (matrices, m, m), float32, m up to ``LARGEST_SIZE``.
        lower: l.
        steps: how many, at least 1.
    """
    return _run(target, target, steps, lower=lower, minimax=True)


def newton(start: Tensor, target: Tensor, *, steps: int) -> Tensor:
    """From ``start``, steps V ← 2 V − V A V.

    Args:
        start: V, (matrices, m, m), float32.
        target: A, likewise, m up to ``LARGEST_SIZE``.
        steps: how many, at least 1.
    """
    return _run(start, target, steps, lower=1.0, minimax=False)


def _run(start: Tensor, target: Tensor, steps: int, *, lower: float, minimax: bool) -> Tensor:
    matrices, m, _ = target.shape
    device = launching.device_of(target.device)
    chosen = choose("newton_pinv", m, m, m, target.dtype, device)
    whole = chosen.tokens >= m
    # Matrices of more than one tile go back and forth between two buffers.
    inverse = torch.empty(
        1 if whole else 2, matrices, m, m, device=target.device, dtype=torch.float32
    )
    launching.launch(
        _newton if whole else _newton_in_tiles,
        (matrices,),
        target.contiguous(),
        start.contiguous(),
        inverse,
        matrices,
        m,
        steps,
        lower,
        MINIMAX=minimax,
        BLOCK=block_of(m),
        TILE=chosen.tokens,
        PRECISION=device.precision,
        warps=chosen.warps,
        stages=chosen.stages,
    )
    return inverse[0 if whole else steps % 2]


@triton.jit
def _start(a, start_ptr, at, mask, MINIMAX: tl.constexpr):
    """The first V, all of it: [BLOCK, BLOCK]."""
    if MINIMAX:
        row = tl.arange(0, a.shape[0])
        identity = (row[:, None] == row[None, :]) & mask
        v = tl.where(identity, 1.0 / tl.max(tl.sum(tl.abs(a), 1)), 0.0)
    else:
        v = tl.load(start_ptr + at, mask=mask, other=0.0)
    return v


@triton.jit
def _coefficients(lower):
    """What a step keeps of V and takes off of V A V, and the next l."""
    middle = (1 + lower) / 2
    square = middle * middle
    return 2 / middle, 1 / square, tl.minimum(lower * (2 * middle - lower) / square, 1.0)


@triton.jit
def _newton(
    a_ptr,
    start_ptr,
    inverse_ptr,
    matrices,
    m,
    steps,
    lower,
    MINIMAX: tl.constexpr,
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
    v = _start(a, start_ptr, at, mask, MINIMAX)
    for _ in range(steps):
        keep, subtract, lower = _coefficients(lower)
        va = tl.dot(v, a, input_precision=PRECISION)
        v = keep * v - subtract * tl.dot(va, v, input_precision=PRECISION)
    tl.store(inverse_ptr + at, v * (2 / (1 + lower)), mask=mask)


@triton.jit
def _newton_in_tiles(
    a_ptr,
    start_ptr,
    inverse_ptr,
    matrices,
    m,
    steps,
    lower,
    MINIMAX: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The same for a matrix that shared memory does not hold: V stays in the cache.

    Rows i of V A V are Σ_k (V_i A_k) V_k, with A_k columns of A and V_k rows of V.
    """
    matrix = tl.program_id(0).to(tl.int64) * m * m
    whole = tl.arange(0, BLOCK)
    part = tl.arange(0, TILE)
    mask = (whole < m)[:, None] & (whole < m)[None, :]
    at = matrix + whole[:, None] * m + whole[None, :]
    a = tl.load(a_ptr + at, mask=mask, other=0.0)
    tl.store(inverse_ptr + at, _start(a, start_ptr, at, mask, MINIMAX), mask=mask)
    for step in range(steps):
        keep, subtract, lower = _coefficients(lower)
        unit = tl.where(step == steps - 1, 2 / (1 + lower), 1.0)
        here = (step % 2) * matrices.to(tl.int64) * m * m + matrix
        there = ((step + 1) % 2) * matrices.to(tl.int64) * m * m + matrix
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
