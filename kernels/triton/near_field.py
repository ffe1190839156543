"""The output of ``"token"`` with a near field: the exact kernel within runs of tokens."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from softattn.kernels.arithmetic import (
    add_dot,
    dot,
    exponent,
    floored_share,
    load_landmarks,
    load_middle,
    load_points,
    load_rows,
    load_unit,
    load_weights,
    pair_of_program,
    split,
    store_rows,
    stretch_of_program,
    without_padding,
)
from softattn.kernels.launching import CHANGING, rows_argument
from softattn.kernels.pieces import Pieces, Weights, middle_arguments, weights_arguments
from softattn.kernels.token_pass import TokenPass


class NearFieldOutput(NamedTuple):
    """The output (batch, heads, n, d_v), and what its gradient needs.

    denominator: D̃, (batch, heads, n), float32; its last bit is 1 where it is at its floor.
    """

    output: Tensor
    denominator: Tensor


def near_field_output(
    tokens: Tensor,
    landmarks: Tensor,
    values: Tensor,
    *,
    weights: Tensor | Weights,
    middle: Tensor | Pieces,
    near_field: int,
    rate: float,
    floor: float,
    underflow: float = 0.0,
    center: Tensor | None = None,
    padding: Tensor | None = None,
) -> NearFieldOutput:
    """O = (P W + R V) / D̃, where D̃ has the sign of D and the magnitude max(|D|, floor · T).

    Runs are ``near_field`` tokens that follow each other. With K = k(X, X),

        D = P z + R 1,   T = P |z| + |R| 1,
        R_ij = K_ij − (P M Pᵀ)_ij for i and j of one run, from −1, or 0 where i = j, to 1; else 0.

    Args:
        tokens: X, (batch, heads, n, d).
        landmarks: L, (batch, heads, m, d).
        values: V, (batch, heads, n, d_v), in the dtype of the tokens.
        weights: W, and z, in pieces; or whole, (batch, heads, m, d_v + 1), float32.
        middle: M, (batch, heads, m, m), float32 or in pieces.
        near_field: tokens of a run, a power of two.
        rate: s log₂(e) / 2.
        floor: see above.
        underflow: where T is this at most, the output is 0.
        center: (batch, heads, d), subtracted from tokens and landmarks.
        padding: (batch, n), True at padded tokens, which are ignored; their output is 0.
    """
    d_v = values.shape[3]
    tiles = TokenPass(
        "near_field_output",
        tokens,
        landmarks,
        d_v,
        rate=rate,
        center=center,
        padding=padding,
        near_field=near_field,
    )
    result = NearFieldOutput(
        output=tiles.empty(tiles.n, d_v, dtype=values.dtype), denominator=tiles.empty(tiles.n)
    )
    tiles.launch(
        _near_field_output,
        tiles.stretches(),
        **weights_arguments("w", "z", weights, d_v, tokens.dtype),
        **rows_argument("v", values),
        **middle_arguments(middle, tokens.dtype),
        o_ptr=result.output,
        denominator_ptr=result.denominator,
        floor=floor,
        underflow=underflow,
        RUN=near_field,
    )
    return result


@triton.jit(do_not_specialize=CHANGING)
def _near_field_output(
    # tokens and landmarks
    x_ptr, x_batch, x_head, x_row: tl.constexpr,
    l_ptr, l_batch, l_head, l_row: tl.constexpr,
    center_ptr, padding_ptr,
    # W, z, V and M
    w_ptr, w_rest_ptr, w_unit_ptr, w_batch, w_head, w_row: tl.constexpr, z_ptr,
    v_ptr, v_batch, v_head, v_row: tl.constexpr,
    middle_ptr, middle_rest_ptr, middle_unit_ptr,
    # outputs
    o_ptr, denominator_ptr,
    # sizes
    n, m, heads, stretches, length, rate, floor, underflow,
    D: tl.constexpr, D_V: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    RUN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o_i = (Σ_j P_ij w_j + Σ_j R_ij v_j) / D̃_i over one stretch of tokens."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    PIECES: tl.constexpr = 1 if DTYPE == tl.float32 else 2
    unit, pair, batch, head, _number = pair_of_program(heads, stretches, 1)
    x_ptr += batch * x_batch + head * x_head
    l_ptr += batch * l_batch + head * l_head
    w_ptr += batch * w_batch + head * w_head
    v_ptr += batch * v_batch + head * v_head
    middle_ptr += pair * m * m
    if PIECES == 2:
        w_rest_ptr += batch * w_batch + head * w_head
        middle_rest_ptr += pair * m * m
    w_unit, middle_unit = load_unit(w_unit_ptr, pair), load_unit(middle_unit_ptr, pair)
    z_ptr += pair * m
    o_ptr += pair * n * D_V
    if center_ptr is not None:
        center_ptr += pair * D
    if padding_ptr is not None:
        padding_ptr += batch * n

    landmark = tl.arange(0, BLOCK_M)
    inside_m = landmark < m
    # [BLOCK_M, BLOCK_D], [BLOCK_M]
    l, l_square, _real = load_landmarks(
        l_ptr, 0, landmark, l_row, inside_m, None, center_ptr, D, BLOCK_D
    )
    l_columns = tl.trans(l)
    # [BLOCK_M, BLOCK_V] twice, [BLOCK_M]
    w, w_rest, z = load_weights(
        w_ptr, w_rest_ptr, z_ptr, 0, landmark, w_row, inside_m, D_V, BLOCK_V
    )
    # [BLOCK_M, BLOCK_M] twice
    middle, middle_rest = load_middle(middle_ptr, middle_rest_ptr, landmark, landmark, m)
    token = tl.arange(0, BLOCK_N)
    begin, end = stretch_of_program(unit, stretches, length, n)
    for first in range(begin, end, BLOCK_N):
        inside = token < n - first
        valid = without_padding(padding_ptr, first, token, inside)
        # [BLOCK_N, BLOCK_D], [BLOCK_N]
        x, x_square = load_points(x_ptr, first, token, x_row, valid, center_ptr, D, BLOCK_D)
        # [BLOCK_N, BLOCK_V]
        v = load_rows(v_ptr, first, token, v_row, valid, D_V, BLOCK_V)
        # [BLOCK_N, BLOCK_M]
        p = tl.exp2(exponent(x, x_square, l_columns, l_square, rate, PRECISION))
        p_first, p_rest, _ = split(p, DTYPE, True)
        p_middle = middle_unit * dot(
            p_first, p_rest, middle, middle_rest, PIECES, PIECES, PRECISION
        )
        a_first, a_rest, a_unit = split(p_middle, DTYPE, False)
        # [BLOCK_N, BLOCK_N]
        approximated = a_unit * dot(
            a_first, a_rest, tl.trans(p_first), tl.trans(p_rest), PIECES, PIECES, PRECISION
        )
        r, _kernel, _free = remainder(x, x_square, approximated, token, valid, rate, RUN, PRECISION)
        r_first, r_rest, _ = split(r, DTYPE, True)
        o = dot(r_first, r_rest, v, v, PIECES, 1, PRECISION)
        o = add_dot(o, w_unit, p_first, p_rest, w, w_rest, PIECES, PIECES, PRECISION)
        denominator = tl.sum(p * z[None, :], 1) + tl.sum(r, 1)
        terms = tl.sum(p * tl.abs(z)[None, :], 1) + tl.sum(tl.abs(r), 1)
        to = denominator_ptr + pair * n + first + token
        o *= floored_share(denominator, terms, floor, underflow, to, inside)[:, None]
        if padding_ptr is not None:
            o = tl.where(valid[:, None], o, 0.0)
        store_rows(o_ptr, first, token, D_V, o, inside, D_V, BLOCK_V)


@triton.jit
def remainder(
    x, x_square, approximated, token, valid, rate, RUN: tl.constexpr, PRECISION: tl.constexpr
):  # [tokens, tokens] three times
    """R of a tile of whole runs, k(X, X), and where R is between its bounds.

    R is 0 where tokens are of two runs or not ``valid``. Without rounding no entry would be at a
    bound.
    """
    own = token[:, None] == token[None, :]
    e = exponent(x, x_square, tl.trans(x), x_square, rate, PRECISION)
    kernel = tl.exp2(tl.where(own, 0.0, e))
    difference = kernel - approximated
    bounded = tl.minimum(tl.maximum(difference, tl.where(own, 0.0, -1.0)), 1.0)
    near = (token[:, None] // RUN == token[None, :] // RUN) & valid[:, None] & valid[None, :]
    return tl.where(near, bounded, 0.0), kernel, near & (bounded == difference)
