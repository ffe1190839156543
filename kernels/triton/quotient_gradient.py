"""The first backward pass of ``normalization="token"``: sums over tokens through the quotient."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from softattn.kernels import configurations, launching
from softattn.kernels.arithmetic import (
    dot,
    exponent,
    load_points,
    load_rows,
    split,
    store_rows,
    without_padding,
)
from softattn.kernels.launching import block_of, padding_of, rows_of, stretches, strides_of


class QuotientGradient(NamedTuple):
    """Gradients at the quotient O_i = N_i / D_i, in float32.

    weights: of W and, in the last column, of z: (batch, heads, m, d_v + 1).
    middle: what the diagonal gives M, −Pᵀ diag(dc) P, (batch, heads, m, m); None without one.
    denominator: dD, (batch, heads, n).
    diagonal: dc, (batch, heads, n); None without one.
    """

    weights: Tensor
    middle: Tensor | None
    denominator: Tensor
    diagonal: Tensor | None


def quotient_gradient(
    tokens: Tensor,
    landmarks: Tensor,
    grad: Tensor,
    output: Tensor,
    denominator: Tensor,
    *,
    rate: float,
    floor: float,
    center: Tensor | None = None,
    padding: Tensor | None = None,
    values: Tensor | None = None,
    diagonal: Tensor | None = None,
) -> QuotientGradient:
    """dW = Pᵀ (G / D), dz = Pᵀ dD and, with a diagonal, −Pᵀ diag(dc) P.

    With G = dO:  dD_i = −G_i · O_i / D_i, 0 where D_i is at its floor, and
    dc_i = G_i · v_i / D_i + dD_i, 0 where c_i is at 0 or 1.

    Args:
        tokens: X, (batch, heads, n, d).
        landmarks: L, (batch, heads, m, d).
        grad: G, (batch, heads, n, d_v), in the dtype of the tokens.
        output: O, likewise.
        denominator: D, (batch, heads, n).
        rate: s log₂(e) / 2.
        floor: of D.
        center: (batch, heads, d), taken off tokens and landmarks.
        padding: (batch, n), True where a token is not to be read.
        values: V, (batch, heads, n, d_v), with a diagonal.
        diagonal: c, (batch, heads, n), or None.
    """
    tokens, landmarks, grad, output = map(rows_of, (tokens, landmarks, grad, output))
    values = None if values is None else rows_of(values)
    batch, heads, n, d = tokens.shape
    m, d_v = landmarks.shape[2], grad.shape[3]
    device = launching.device_of(tokens.device)
    variant = "quotient_gradient" if diagonal is None else "quotient_gradient_diagonal"
    chosen = configurations.choose(variant, d, d_v, m, tokens.dtype, device)
    blocks = max(triton.cdiv(m, chosen.landmarks), 1)
    tiles = blocks * blocks if diagonal is not None else blocks
    number, length = stretches(n, chosen.tokens, batch * heads * tiles, device)

    def empty(*shape: int) -> Tensor:
        return torch.empty(batch, heads, *shape, device=tokens.device, dtype=torch.float32)

    weights = empty(number, m, d_v + 1)
    middle = None if diagonal is None else empty(number, m, m)
    grad_denominator = empty(n)
    grad_diagonal = None if diagonal is None else empty(n)
    launching.launch(
        _quotient_gradient,
        (batch * heads * number, blocks, tiles // blocks),
        tokens,
        landmarks,
        grad,
        output,
        values,
        denominator,
        diagonal,
        center,
        padding_of(padding),
        weights,
        middle,
        grad_denominator,
        grad_diagonal,
        *strides_of(tokens),
        *strides_of(landmarks),
        *strides_of(grad),
        *strides_of(output),
        *strides_of(values),
        n,
        m,
        heads,
        number,
        length,
        rate,
        floor,
        D=d,
        D_V=d_v,
        ONE_BLOCK=blocks == 1,
        BLOCK_N=chosen.tokens,
        BLOCK_M=chosen.landmarks,
        BLOCK_D=block_of(d),
        BLOCK_V=block_of(d_v),
        CENTERED=center is not None,
        PADDED=padding is not None,
        DIAGONAL=diagonal is not None,
        PRECISION=device.precision,
        warps=chosen.warps,
        stages=chosen.stages,
    )
    return QuotientGradient(
        weights.sum(2),
        None if middle is None else middle.sum(2).neg_(),
        grad_denominator,
        grad_diagonal,
    )


@triton.jit
def _quotient_gradient(
    x_ptr,
    l_ptr,
    g_ptr,
    o_ptr,
    v_ptr,
    denominator_ptr,
    diagonal_ptr,
    center_ptr,
    padding_ptr,
    dw_ptr,
    dm_ptr,
    dd_ptr,
    dc_ptr,
    x_batch,
    x_head,
    x_row: tl.constexpr,
    l_batch,
    l_head,
    l_row: tl.constexpr,
    g_batch,
    g_head,
    g_row: tl.constexpr,
    o_batch,
    o_head,
    o_row: tl.constexpr,
    v_batch,
    v_head,
    v_row: tl.constexpr,
    n,
    m,
    heads,
    stretches,
    length,
    rate,
    floor,
    D: tl.constexpr,
    D_V: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CENTERED: tl.constexpr,
    PADDED: tl.constexpr,
    DIAGONAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One stretch of tokens: Σ_i P_ij G_i / D_i, Σ_i P_ij dD_i and Σ_i dc_i P_ij P_ik.

    The second axis of the grid is the block of j, the third that of k.
    """
    unit = tl.program_id(0).to(tl.int64)
    pair = unit // stretches
    batch, head = pair // heads, pair % heads
    x_ptr += batch * x_batch + head * x_head
    l_ptr += batch * l_batch + head * l_head
    g_ptr += batch * g_batch + head * g_head
    o_ptr += batch * o_batch + head * o_head
    if CENTERED:
        center_ptr += pair * D
    if PADDED:
        padding_ptr += batch * n
    if DIAGONAL:
        v_ptr += batch * v_batch + head * v_head
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    PIECES: tl.constexpr = 1 if DTYPE == tl.float32 else 2

    landmark = tl.arange(0, BLOCK_M)
    j = tl.program_id(1).to(tl.int64) * BLOCK_M
    k = tl.program_id(2).to(tl.int64) * BLOCK_M
    # [BLOCK_M, BLOCK_D], [BLOCK_M]
    l, l_square = load_points(
        l_ptr + j * l_row, landmark, l_row, landmark < m - j, center_ptr, D, BLOCK_D, CENTERED
    )
    if not ONE_BLOCK:
        other, other_square = load_points(
            l_ptr + k * l_row, landmark, l_row, landmark < m - k, center_ptr, D, BLOCK_D, CENTERED
        )
    dw = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    dz = tl.zeros([BLOCK_M], tl.float32)
    dm = tl.zeros([BLOCK_M, BLOCK_M], tl.float32)
    # Of the programs that meet a token, one writes what it finds.
    written = tl.where(tl.program_id(1) + tl.program_id(2) == 0, n, 0)
    token = tl.arange(0, BLOCK_N)
    start = unit % stretches * length
    for first in range(start, tl.minimum(start + length, n), BLOCK_N):
        valid = without_padding(padding_ptr, first, token, token < n - first, PADDED)
        at = pair * n + first + token
        # [BLOCK_N, BLOCK_V]
        g = load_rows(g_ptr + first * g_row, token, g_row, valid, D_V, BLOCK_V)
        o = load_rows(o_ptr + first * o_row, token, o_row, valid, D_V, BLOCK_V)
        wide = g.to(tl.float32)
        # [BLOCK_N]
        denominator = tl.load(denominator_ptr + at, mask=valid, other=1.0)
        share = 1 / denominator
        dd = -tl.sum(wide * o.to(tl.float32), 1) * share
        dd = tl.where(denominator <= floor, 0.0, dd)
        tl.store(dd_ptr + at, dd, mask=token < written - first)
        if DIAGONAL:
            v = load_rows(v_ptr + first * v_row, token, v_row, valid, D_V, BLOCK_V)
            c = tl.load(diagonal_ptr + at, mask=valid, other=0.0)
            dc = tl.sum(wide * v.to(tl.float32), 1) * share + dd
            dc = tl.where((c <= 0) | (c >= 1), 0.0, dc)
            tl.store(dc_ptr + at, dc, mask=token < written - first)
        # [BLOCK_N, BLOCK_D], [BLOCK_N]
        x, x_square = load_points(
            x_ptr + first * x_row, token, x_row, valid, center_ptr, D, BLOCK_D, CENTERED
        )
        x_columns = tl.trans(x)
        # [BLOCK_M, BLOCK_N]
        p = tl.exp2(exponent(l, l_square, x_columns, x_square, rate, PRECISION))
        dz += tl.sum(p * dd[None, :], 1)
        if DIAGONAL:
            a_first, a_second, a_unit = split(p * dc[None, :], DTYPE, False)
            b = p
            if not ONE_BLOCK:
                b = tl.exp2(exponent(other, other_square, x_columns, x_square, rate, PRECISION))
            b_first, b_second, _ = split(b, DTYPE, True)
            dm += a_unit * dot(
                a_first, a_second, tl.trans(b_first), tl.trans(b_second), PIECES, PIECES, PRECISION
            )
        p_first, p_second, p_unit = split(p * share[None, :], DTYPE, False)
        dw += p_unit * dot(p_first, p_second, g, g, PIECES, 1, PRECISION)
    if tl.program_id(2) == 0:
        dw_ptr += (unit * m + j) * (D_V + 1)
        store_rows(dw_ptr, landmark, D_V + 1, dw, landmark < m - j, D_V, BLOCK_V)
        tl.store(dw_ptr + landmark * (D_V + 1) + D_V, dz, mask=landmark < m - j)
    if DIAGONAL:
        dm_ptr += (unit * m + j) * m + k
        to = dm_ptr + landmark[:, None] * m + landmark[None, :]
        tl.store(to, dm, mask=(landmark < m - j)[:, None] & (landmark < m - k)[None, :])
