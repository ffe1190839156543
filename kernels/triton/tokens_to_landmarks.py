"""S = K(L, X) V: what each landmark hears from all tokens."""

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


def tokens_to_landmarks(
    landmarks: Tensor,
    tokens: Tensor,
    values: Tensor,
    *,
    rate: float,
    center: Tensor | None = None,
    padding: Tensor | None = None,
    landmark_padding: Tensor | None = None,
    row_shift: Tensor | None = None,
    with_ones: bool = False,
) -> Tensor:
    """S = Pᵀ V, and u = Pᵀ 1 as one more column, with P_ij = 2^(−rate ‖x_i − l_j‖² − shift_i).

    Args:
        landmarks: L, (batch, heads, m, d).
        tokens: X, (batch, heads, n, d).
        values: V, (batch, heads, n, d_v), in the dtype of the tokens.
        rate: s log₂(e) / 2.
        center: (batch, heads, d), taken off tokens and landmarks.
        padding: (batch, n), True where a token is not to be read.
        landmark_padding: (batch, m), True where a landmark hears nothing and is not to be read.
        row_shift: (batch, heads, n), float32.
        with_ones: whether u is asked for.

    Returns:
        (batch, heads, m, d_v), or d_v + 1 columns with u, in float32. Stretches of tokens are
        summed apart and then added in their order, so that the result is the same at every run.
    """
    landmarks, tokens, values = rows_of(landmarks), rows_of(tokens), rows_of(values)
    batch, heads, n, d = tokens.shape
    m, d_v = landmarks.shape[2], values.shape[3]
    device = launching.device_of(tokens.device)
    chosen = configurations.choose("tokens_to_landmarks", d, d_v, m, tokens.dtype, device)
    blocks = max(triton.cdiv(m, chosen.landmarks), 1)
    number, length = stretches(n, chosen.tokens, batch * heads * blocks, device)
    columns = d_v + with_ones
    partial = torch.empty(
        batch, heads, number, m, columns, device=tokens.device, dtype=torch.float32
    )
    launching.launch(
        _tokens_to_landmarks,
        (batch * heads * number, blocks),
        tokens,
        landmarks,
        values,
        center,
        padding_of(padding),
        padding_of(landmark_padding),
        row_shift,
        partial,
        *strides_of(tokens),
        *strides_of(landmarks),
        *strides_of(values),
        n,
        m,
        heads,
        number,
        length,
        rate,
        D=d,
        D_V=d_v,
        BLOCK_N=chosen.tokens,
        BLOCK_M=chosen.landmarks,
        BLOCK_D=block_of(d),
        BLOCK_V=block_of(d_v),
        CENTERED=center is not None,
        PADDED=padding is not None,
        LANDMARKS_PADDED=landmark_padding is not None,
        SHIFTED=row_shift is not None,
        ONES=with_ones,
        PRECISION=device.precision,
        warps=chosen.warps,
        stages=chosen.stages,
    )
    return partial.sum(2) if number > 1 else partial[:, :, 0]


@triton.jit
def _tokens_to_landmarks(
    x_ptr,
    l_ptr,
    v_ptr,
    center_ptr,
    padding_ptr,
    l_padding_ptr,
    shift_ptr,
    partial_ptr,
    x_batch,
    x_head,
    x_row: tl.constexpr,
    l_batch,
    l_head,
    l_row: tl.constexpr,
    v_batch,
    v_head,
    v_row: tl.constexpr,
    n,
    m,
    heads,
    stretches,
    length,
    rate,
    D: tl.constexpr,
    D_V: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CENTERED: tl.constexpr,
    PADDED: tl.constexpr,
    LANDMARKS_PADDED: tl.constexpr,
    SHIFTED: tl.constexpr,
    ONES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """S_j = Σ_i P_ij v_i and u_j = Σ_i P_ij over one stretch of tokens, for one landmark block."""
    unit = tl.program_id(0).to(tl.int64)
    pair = unit // stretches
    batch, head = pair // heads, pair % heads
    x_ptr += batch * x_batch + head * x_head
    l_ptr += batch * l_batch + head * l_head
    v_ptr += batch * v_batch + head * v_head
    if CENTERED:
        center_ptr += pair * D
    if PADDED:
        padding_ptr += batch * n
    if LANDMARKS_PADDED:
        l_padding_ptr += batch * m
    if SHIFTED:
        shift_ptr += pair * n
    partial_ptr += unit * m * (D_V + ONES)
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    PIECES: tl.constexpr = 1 if DTYPE == tl.float32 else 2

    block = tl.program_id(1).to(tl.int64) * BLOCK_M
    landmark = tl.arange(0, BLOCK_M)
    inside = landmark < m - block
    real = without_padding(l_padding_ptr, block, landmark, inside, LANDMARKS_PADDED)
    # [BLOCK_M, BLOCK_D], [BLOCK_M]
    l, l_square = load_points(
        l_ptr + block * l_row, landmark, l_row, real, center_ptr, D, BLOCK_D, CENTERED
    )
    sums = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    ones = tl.zeros([BLOCK_M], tl.float32)
    token = tl.arange(0, BLOCK_N)
    start = unit % stretches * length
    for first in range(start, tl.minimum(start + length, n), BLOCK_N):
        valid = without_padding(padding_ptr, first, token, token < n - first, PADDED)
        # [BLOCK_N, BLOCK_D], [BLOCK_N]
        x, x_square = load_points(
            x_ptr + first * x_row, token, x_row, valid, center_ptr, D, BLOCK_D, CENTERED
        )
        # [BLOCK_N, BLOCK_V]
        v = load_rows(v_ptr + first * v_row, token, v_row, valid, D_V, BLOCK_V)
        # [BLOCK_M, BLOCK_N]
        e = exponent(l, l_square, tl.trans(x), x_square, rate, PRECISION)
        if SHIFTED:
            shift = tl.load(shift_ptr + first + token, mask=valid, other=0.0)
            e = tl.where(real[:, None], e - shift[None, :], float("-inf"))
        p = tl.exp2(e)
        p_first, p_second, _ = split(p, DTYPE, True)
        sums += dot(p_first, p_second, v, v, PIECES, 1, PRECISION)
        if ONES:
            ones += tl.sum(tl.where(valid[None, :], p, 0.0), 1)
    partial_ptr += block * (D_V + ONES)
    sums = tl.where(real[:, None], sums, 0.0)
    store_rows(partial_ptr, landmark, D_V + ONES, sums, inside, D_V, BLOCK_V)
    if ONES:
        ones = tl.where(real, ones, 0.0)
        tl.store(partial_ptr + landmark * (D_V + 1) + D_V, ones, mask=inside)
