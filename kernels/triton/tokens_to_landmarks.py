"""S = K(L, X) V: sums of values over all tokens, one for each landmark."""

import triton
import triton.language as tl
from torch import Tensor

from softattn.kernels.arithmetic import (
    blocks_of,
    dot,
    exponent,
    load_landmarks,
    load_points,
    load_rows,
    pair_of_program,
    shifted,
    split,
    store_rows,
    stretch_of_program,
    without_padding,
)
from softattn.kernels.launching import CHANGING, padding_argument, rows_argument
from softattn.kernels.token_pass import TokenPass


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
    key_weights: Tensor | None = None,
    with_ones: bool = False,
) -> Tensor:
    """S = Pᵀ V, and u = Pᵀ 1 as one more column, with P_ij = w_i 2^(−rate ‖x_i − l_j‖² − shift_i).

    Args:
        landmarks: L, (batch, heads, m, d).
        tokens: X, (batch, heads, n, d).
        values: V, (batch, heads, n, d_v), in the dtype of the tokens.
        rate: s log₂(e) / 2.
        center: (batch, heads, d), subtracted from tokens and landmarks.
        padding: (batch, n), True at padded tokens, which are ignored.
        landmark_padding: (batch, m), True at padded landmarks, which are ignored; their sums are 0.
        row_shift: (batch, heads, n), float32; None is 0.
        key_weights: w, from 0 to 1, likewise; None is 1.
        with_ones: whether to compute u.

    Returns:
        The sums over each stretch of tokens, for ``add_stretches`` or ``landmark_weights``:
        (batch, heads, stretches, m, d_v), or d_v + 1 columns with u, in float32.
    """
    m, d_v = landmarks.shape[2], values.shape[3]
    tiles = TokenPass(
        "tokens_to_landmarks", tokens, landmarks, d_v, rate=rate, center=center, padding=padding
    )
    stretches = tiles.stretches(tiles.blocks)
    partial = tiles.empty(stretches.number, m, d_v + with_ones)
    tiles.launch(
        _tokens_to_landmarks,
        stretches,
        tiles.blocks,
        **rows_argument("v", values),
        l_padding_ptr=padding_argument(landmark_padding),
        shift_ptr=row_shift,
        key_weight_ptr=key_weights,
        partial_ptr=partial,
        ONES=with_ones,
    )
    return partial


@triton.jit(do_not_specialize=CHANGING)
def _tokens_to_landmarks(
    # tokens, landmarks and values
    x_ptr, x_batch, x_head, x_row,
    l_ptr, l_batch, l_head, l_row,
    v_ptr, v_batch, v_head, v_row,
    center_ptr, padding_ptr, l_padding_ptr, shift_ptr, key_weight_ptr,
    # sums, (batch, heads, stretches, m, D_V + ONES)
    partial_ptr,
    # sizes
    n, m, heads, stretches, length, rate, D: tl.constexpr, D_V: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    ONES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """S_j = Σ_i P_ij v_i and u_j = Σ_i P_ij over one stretch of tokens, for one landmark block."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    PIECES: tl.constexpr = 1 if DTYPE == tl.float32 else 2
    blocks = blocks_of(m, BLOCK_M)
    unit, pair, batch, head, number = pair_of_program(heads, stretches, blocks)
    x_ptr += batch * x_batch + head * x_head
    l_ptr += batch * l_batch + head * l_head
    v_ptr += batch * v_batch + head * v_head
    if center_ptr is not None:
        center_ptr += pair * D
    if padding_ptr is not None:
        padding_ptr += batch * n
    if l_padding_ptr is not None:
        l_padding_ptr += batch * m
    if shift_ptr is not None:
        shift_ptr += pair * n
    if key_weight_ptr is not None:
        key_weight_ptr += pair * n
    partial_ptr += unit * m * (D_V + ONES)

    block = number * BLOCK_M
    landmark = tl.arange(0, BLOCK_M)
    inside = landmark < m - block
    # [BLOCK_M, BLOCK_D], [BLOCK_M], [BLOCK_M]
    l, l_square, real = load_landmarks(
        l_ptr, block, landmark, l_row, inside, l_padding_ptr, center_ptr, D, BLOCK_D
    )
    sums = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    ones = tl.zeros([BLOCK_M], tl.float32)
    token = tl.arange(0, BLOCK_N)
    begin, end = stretch_of_program(unit, stretches, length, n)
    for first in range(begin, end, BLOCK_N):
        valid = without_padding(padding_ptr, first, token, token < n - first)
        # [BLOCK_N, BLOCK_D], [BLOCK_N]
        x, x_square = load_points(x_ptr, first, token, x_row, valid, center_ptr, D, BLOCK_D)
        # [BLOCK_N, BLOCK_V]
        v = load_rows(v_ptr, first, token, v_row, valid, D_V, BLOCK_V)
        # [BLOCK_M, BLOCK_N]
        e = exponent(l, l_square, tl.trans(x), x_square, rate, PRECISION)
        if shift_ptr is not None:
            e = shifted(e, tl.load(shift_ptr + first + token, mask=valid, other=0.0), real)
        p = tl.exp2(e)
        if key_weight_ptr is not None:
            p *= tl.load(key_weight_ptr + first + token, mask=valid, other=0.0)[None, :]
        p_first, p_rest, _ = split(p, DTYPE, True)
        sums += dot(p_first, p_rest, v, v, PIECES, 1, PRECISION)
        if ONES:
            ones += tl.sum(tl.where(valid[None, :], p, 0.0), 1)
    partial_ptr += block * (D_V + ONES)
    sums = tl.where(real[:, None], sums, 0.0)
    store_rows(partial_ptr, 0, landmark, D_V + ONES, sums, inside, D_V, BLOCK_V)
    if ONES:
        ones = tl.where(real, ones, 0.0)
        tl.store(partial_ptr + landmark * (D_V + 1) + D_V, ones, mask=inside)
