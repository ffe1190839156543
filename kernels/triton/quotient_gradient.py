"""The first backward pass of ``normalization="token"``: sums over tokens through the quotient."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from softattn.kernels.arithmetic import (
    blocks_of,
    dot,
    exponent,
    floored_gradient,
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
from softattn.kernels.launching import CHANGING, rows_argument
from softattn.kernels.token_pass import TokenPass


class QuotientGradient(NamedTuple):
    """Gradients at the quotient O_i = N_i / D_i, in float32.

    weights: of W and, in the last column, of z, for each stretch of tokens:
        (batch, heads, stretches, m, d_v + 1).
    middle: minus the diagonal's share of dM, Pᵀ diag(dc) P, for each stretch:
        (batch, heads, stretches, m, m); None without a diagonal.
    denominator: dD̃, (batch, heads, n).
    diagonal: dc, (batch, heads, n); None without one.
    key_weights: the diagonal's share of dw, (batch, heads, n); None without one or without w.
    """

    weights: Tensor
    middle: Tensor | None
    denominator: Tensor
    diagonal: Tensor | None
    key_weights: Tensor | None


def quotient_gradient(
    tokens: Tensor,
    landmarks: Tensor,
    grad: Tensor,
    output: Tensor,
    sums: Tensor,
    denominator: Tensor,
    *,
    rate: float,
    floor: float,
    row_shift: Tensor | None = None,
    center: Tensor | None = None,
    padding: Tensor | None = None,
    values: Tensor | None = None,
    diagonal: Tensor | None = None,
    key_weights: Tensor | None = None,
) -> QuotientGradient:
    """dW = Pᵀ (G / D̃), dz = Pᵀ dD + sign(z) Pᵀ dT and, with a diagonal, Pᵀ diag(dc) P.

    D̃ = sign(D) max(|D|, floor · T) divides, with D = P z + c w and T = P |z| + c w. With G = dO,
    its gradient is dD̃_i = −G_i · O_i / D̃_i. It is that of D_i, or at the floor
    dT_i = sign(D_i) floor · dD̃_i. With h_i = G_i · v_i / D̃_i + dD_i + dT_i the diagonal's is
    dc_i = w_i h_i, 0 where c_i is at 0 or 1, and its share of dw_i is c_i h_i.

    Args:
        tokens: X, (batch, heads, n, d).
        landmarks: L, (batch, heads, m, d).
        grad: G, (batch, heads, n, d_v), in the dtype of the tokens.
        output: O, likewise.
        sums: z, (batch, heads, m), float32.
        denominator: D̃, (batch, heads, n), with the last bit 1 where it is at the floor.
        rate: s log₂(e) / 2.
        floor: see above.
        row_shift: log₂ of what each row of P is divided by, (batch, heads, n), or None. There is
            none with a diagonal.
        center: (batch, heads, d), subtracted from tokens and landmarks.
        padding: (batch, n), True at padded tokens, which are ignored.
        values: V, (batch, heads, n, d_v), with a diagonal.
        diagonal: c, (batch, heads, n), or None.
        key_weights: w, (batch, heads, n), with a diagonal; None is 1.
    """
    m, d_v = landmarks.shape[2], grad.shape[3]
    has_diagonal = diagonal is not None
    tiles = TokenPass(
        "quotient_gradient_diagonal" if has_diagonal else "quotient_gradient",
        tokens,
        landmarks,
        d_v,
        rate=rate,
        center=center,
        padding=padding,
    )
    blocks = tiles.blocks * (tiles.blocks if has_diagonal else 1)
    stretches = tiles.stretches(blocks)
    weights = tiles.empty(stretches.number, m, d_v + 1)
    middle = tiles.empty(stretches.number, m, m) if has_diagonal else None
    grad_denominator = tiles.empty(tiles.n)
    grad_diagonal = tiles.empty(tiles.n) if has_diagonal else None
    grad_key_weights = None if key_weights is None else tiles.empty(tiles.n)
    tiles.launch(
        _quotient_gradient,
        stretches,
        blocks,
        **rows_argument("g", grad),
        **rows_argument("o", output),
        **rows_argument("v", values),
        z_ptr=sums,
        shift_ptr=row_shift,
        denominator_ptr=denominator,
        diagonal_ptr=diagonal,
        key_weight_ptr=key_weights,
        dw_ptr=weights,
        dm_ptr=middle,
        dd_ptr=grad_denominator,
        dc_ptr=grad_diagonal,
        dkey_weight_ptr=grad_key_weights,
        floor=floor,
        ONE_BLOCK=tiles.blocks == 1,
    )
    return QuotientGradient(
        weights,
        middle,
        grad_denominator,
        grad_diagonal,
        grad_key_weights,
    )


@triton.jit(do_not_specialize=CHANGING)
def _quotient_gradient(
    # tokens and landmarks
    x_ptr, x_batch, x_head, x_row,
    l_ptr, l_batch, l_head, l_row,
    center_ptr, padding_ptr,
    # G, O, V, z, the shift, D̃, c and w
    g_ptr, g_batch, g_head, g_row,
    o_ptr, o_batch, o_head, o_row,
    v_ptr, v_batch, v_head, v_row,
    z_ptr, shift_ptr, denominator_ptr, diagonal_ptr, key_weight_ptr,
    # outputs; of dW and dM one for each stretch
    dw_ptr, dm_ptr, dd_ptr, dc_ptr, dkey_weight_ptr,
    # sizes
    n, m, heads, stretches, length, rate, floor, D: tl.constexpr, D_V: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    ONE_BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Σ_i P_ij G_i / D̃_i, dz_j and Σ_i dc_i P_ij P_ik over one stretch of tokens.

    A program has a block of j and, for the diagonal, one of k.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    PIECES: tl.constexpr = 1 if DTYPE == tl.float32 else 2
    DIAGONAL: tl.constexpr = diagonal_ptr is not None
    blocks = blocks_of(m, BLOCK_M)
    columns = blocks if DIAGONAL else 1
    unit, pair, batch, head, number = pair_of_program(heads, stretches, blocks * columns)
    x_ptr += batch * x_batch + head * x_head
    l_ptr += batch * l_batch + head * l_head
    g_ptr += batch * g_batch + head * g_head
    o_ptr += batch * o_batch + head * o_head
    if center_ptr is not None:
        center_ptr += pair * D
    if padding_ptr is not None:
        padding_ptr += batch * n
    if DIAGONAL:
        v_ptr += batch * v_batch + head * v_head

    landmark = tl.arange(0, BLOCK_M)
    j = number // columns * BLOCK_M
    k = number % columns * BLOCK_M
    inside_j, inside_k = landmark < m - j, landmark < m - k
    # [BLOCK_M, BLOCK_D], [BLOCK_M]
    l, l_square, _inside = load_landmarks(
        l_ptr, j, landmark, l_row, inside_j, None, center_ptr, D, BLOCK_D
    )
    sign = tl.load(z_ptr + pair * m + j + landmark, mask=inside_j, other=0.0)
    sign = tl.where(sign > 0, 1.0, tl.where(sign < 0, -1.0, 0.0))
    if not ONE_BLOCK:
        other, other_square, _inside = load_landmarks(
            l_ptr, k, landmark, l_row, inside_k, None, center_ptr, D, BLOCK_D
        )
    dw = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    dz = tl.zeros([BLOCK_M], tl.float32)
    dm = tl.zeros([BLOCK_M, BLOCK_M], tl.float32)
    # Several programs compute dD̃ and dc of a token; the one of the first blocks writes them.
    written = tl.where(number == 0, n, 0)
    token = tl.arange(0, BLOCK_N)
    begin, end = stretch_of_program(unit, stretches, length, n)
    for first in range(begin, end, BLOCK_N):
        valid = without_padding(padding_ptr, first, token, token < n - first)
        at = pair * n + first + token
        # [BLOCK_N, BLOCK_V]
        g = load_rows(g_ptr, first, token, g_row, valid, D_V, BLOCK_V)
        o = load_rows(o_ptr, first, token, o_row, valid, D_V, BLOCK_V)
        wide = g.to(tl.float32)
        # [BLOCK_N]
        denominator = tl.load(denominator_ptr + at, mask=valid, other=1.0)
        share = 1 / denominator
        dd = -tl.sum(wide * o.to(tl.float32), 1) * share
        tl.store(dd_ptr + at, dd, mask=token < written - first)
        dd, dt = floored_gradient(dd, denominator, floor)
        if DIAGONAL:
            v = load_rows(v_ptr, first, token, v_row, valid, D_V, BLOCK_V)
            c = tl.load(diagonal_ptr + at, mask=valid, other=0.0)
            dc = tl.sum(wide * v.to(tl.float32), 1) * share + dd + dt
            if key_weight_ptr is not None:
                tl.store(dkey_weight_ptr + at, c * dc, mask=token < written - first)
                dc *= tl.load(key_weight_ptr + at, mask=valid, other=0.0)
            dc = tl.where((c <= 0) | (c >= 1), 0.0, dc)
            tl.store(dc_ptr + at, dc, mask=token < written - first)
        # [BLOCK_N, BLOCK_D], [BLOCK_N]
        x, x_square = load_points(x_ptr, first, token, x_row, valid, center_ptr, D, BLOCK_D)
        x_columns = tl.trans(x)
        # [BLOCK_M, BLOCK_N]
        e = exponent(l, l_square, x_columns, x_square, rate, PRECISION)
        if shift_ptr is not None:
            e = shifted(e, tl.load(shift_ptr + at, mask=valid, other=0.0), inside_j)
        p = tl.exp2(e)
        dz += tl.sum(p * (dd[None, :] + sign[:, None] * dt[None, :]), 1)
        if DIAGONAL:
            a_first, a_rest, a_unit = split(p * dc[None, :], DTYPE, False)
            b = p
            if not ONE_BLOCK:
                b = tl.exp2(exponent(other, other_square, x_columns, x_square, rate, PRECISION))
            b_first, b_rest, _ = split(b, DTYPE, True)
            dm += a_unit * dot(
                a_first, a_rest, tl.trans(b_first), tl.trans(b_rest), PIECES, PIECES, PRECISION
            )
        p_first, p_rest, p_unit = split(p * share[None, :], DTYPE, False)
        dw += p_unit * dot(p_first, p_rest, g, g, PIECES, 1, PRECISION)
    if k == 0:
        dw_ptr += (unit * m + j) * (D_V + 1)
        store_rows(dw_ptr, 0, landmark, D_V + 1, dw, inside_j, D_V, BLOCK_V)
        tl.store(dw_ptr + landmark * (D_V + 1) + D_V, dz, mask=inside_j)
    if DIAGONAL:
        to = dm_ptr + (unit * m + j) * m + k + landmark[:, None] * m + landmark[None, :]
        tl.store(to, dm, mask=inside_j[:, None] & inside_k[None, :])
