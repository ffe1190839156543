"""The Gaussian kernel between two sets of tokens, written out, and its gradient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from softattn.kernels import configurations, devices, launching
from softattn.kernels.arithmetic import blocks_of, load_rows, pair_of_program, store_rows
from softattn.kernels.launching import CHANGING, block_of, ceil_div, rows_argument


def gaussian_kernel(query: Tensor, key: Tensor, *, rate: float) -> Tensor:
    """P_ij = 2^(−rate ‖x_i − y_j‖²), by differences, so that equal tokens give exactly 1.

    Args:
        query: X, (batch, heads, n_q, d).
        key: Y, (batch, heads, n_k, d).
        rate: s log₂(e) / 2.

    Returns:
        (batch, heads, n_q, n_k), float32.
    """
    batch, heads, n_q, d = query.shape
    n_k = key.shape[2]
    device = devices.device_of(query.device)
    chosen = configurations.choose("gaussian_kernel", d, d, n_k, query.dtype, device)
    block = torch.empty(batch, heads, n_q, n_k, device=query.device, dtype=torch.float32)
    launching.launch(
        _gaussian_kernel,
        # On one axis, since the others end at 65,535.
        (batch * heads * ceil_div(n_q, chosen.tokens) * ceil_div(n_k, chosen.landmarks),),
        dict(
            **rows_argument("x", query),
            **rows_argument("y", key),
            p_ptr=block,
            n=n_q,
            m=n_k,
            heads=heads,
            rate=rate,
            D=d,
            BLOCK_N=chosen.tokens,
            BLOCK_M=chosen.landmarks,
        ),
        chosen,
    )
    return block


def gaussian_kernel_gradient(
    query: Tensor, key: Tensor, block: Tensor, grad: Tensor, *, scale: float
) -> tuple[Tensor, Tensor]:
    """dX = rowsum(w) X − w Y and dY = colsum(w) Y − wᵀ X, with w = −s P ∘ dP.

    Args:
        query: X, (batch, heads, n_q, d).
        key: Y, (batch, heads, n_k, d).
        block: P as ``gaussian_kernel`` gave it.
        grad: dP, likewise.
        scale: s.

    Returns:
        dX and dY, in the dtypes of ``query`` and ``key``.
    """
    return (
        _gradient_of_one_side(query, key, block, grad, scale),
        _gradient_of_one_side(key, query, block.mT, grad.mT, scale),
    )


def _gradient_of_one_side(
    x: Tensor, y: Tensor, block: Tensor, grad: Tensor, scale: float
) -> Tensor:
    batch, heads, n, d = x.shape
    m = y.shape[2]
    device = devices.device_of(x.device)
    chosen = configurations.choose("gaussian_kernel_gradient", d, d, m, x.dtype, device)
    dx = torch.empty(batch, heads, n, d, device=x.device, dtype=x.dtype)
    launching.launch(
        _gaussian_kernel_gradient,
        (batch * heads * ceil_div(n, chosen.tokens),),
        dict(
            **rows_argument("x", x),
            **rows_argument("y", y),
            **_block_argument("p", block),
            **_block_argument("g", grad),
            dx_ptr=dx,
            n=n,
            m=m,
            heads=heads,
            scale=scale,
            D=d,
            BLOCK_N=chosen.tokens,
            BLOCK_M=chosen.landmarks,
            BLOCK_D=block_of(d),
            PRECISION=device.precision,
        ),
        chosen,
    )
    return dx


def _block_argument(name: str, block: Tensor) -> dict[str, object]:
    """A kernel's pointer to a block (batch, heads, rows, columns), and all of its strides."""
    strides = zip(("batch", "head", "row", "column"), block.stride(), strict=True)
    return {f"{name}_ptr": block} | {f"{name}_{axis}": stride for axis, stride in strides}


@triton.jit(do_not_specialize=CHANGING)
def _gaussian_kernel(
    x_ptr, x_batch, x_head, x_row,
    y_ptr, y_batch, y_head, y_row,
    p_ptr,
    n, m, heads, rate, D: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One tile of P_ij = 2^(−rate Σ_f (x_if − y_jf)²), one feature after the other."""
    columns = blocks_of(m, BLOCK_M)
    unit, pair, batch, head, number = pair_of_program(heads, blocks_of(n, BLOCK_N), columns)
    row = unit % blocks_of(n, BLOCK_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = number * BLOCK_M + tl.arange(0, BLOCK_M)
    x_ptr += batch * x_batch + head * x_head + row * x_row
    y_ptr += batch * y_batch + head * y_head + column * y_row
    distance = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for feature in range(D):
        # [BLOCK_N], [BLOCK_M]
        x = tl.load(x_ptr + feature, mask=row < n, other=0.0).to(tl.float32)
        y = tl.load(y_ptr + feature, mask=column < m, other=0.0).to(tl.float32)
        difference = x[:, None] - y[None, :]
        distance += difference * difference
    mask = (row < n)[:, None] & (column < m)[None, :]
    to = p_ptr + pair * n * m + row[:, None] * m + column[None, :]
    tl.store(to, tl.exp2(-rate * distance), mask=mask)


@triton.jit(do_not_specialize=CHANGING)
def _gaussian_kernel_gradient(
    x_ptr, x_batch, x_head, x_row,
    y_ptr, y_batch, y_head, y_row,
    p_ptr, p_batch, p_head, p_row, p_column,
    g_ptr, g_batch, g_head, g_row, g_column,
    dx_ptr,
    n, m, heads, scale, D: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dX_i = Σ_j w_ij (x_i − y_j) with w = −s P ∘ dP, for one block of rows."""
    blocks = blocks_of(n, BLOCK_N)
    unit, pair, batch, head, _number = pair_of_program(heads, blocks, 1)
    x_ptr += batch * x_batch + head * x_head
    y_ptr += batch * y_batch + head * y_head
    p_ptr += batch * p_batch + head * p_head
    g_ptr += batch * g_batch + head * g_head
    row = unit % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    # [BLOCK_N, BLOCK_D]
    x = load_rows(x_ptr, 0, row, x_row, row < n, D, BLOCK_D).to(tl.float32)
    dx = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for first in range(0, m, BLOCK_M):
        column = first + tl.arange(0, BLOCK_M).to(tl.int64)
        mask = (row < n)[:, None] & (column < m)[None, :]
        # [BLOCK_N, BLOCK_M]
        p = tl.load(p_ptr + row[:, None] * p_row + column[None, :] * p_column, mask=mask, other=0.0)
        g = tl.load(g_ptr + row[:, None] * g_row + column[None, :] * g_column, mask=mask, other=0.0)
        w = -scale * p * g
        # [BLOCK_M, BLOCK_D]
        y = load_rows(y_ptr, 0, column, y_row, column < m, D, BLOCK_D).to(tl.float32)
        dx += tl.sum(w, 1)[:, None] * x - tl.dot(w, y, input_precision=PRECISION)
    store_rows(dx_ptr, pair * n, row, D, dx, row < n, D, BLOCK_D)
