"""The output of ``"token"`` with a near field: the exact kernel within runs of tokens."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from softattn.kernels.arithmetic import (
    dot,
    exponent,
    floored_share,
    load_landmarks,
    load_points,
    load_rows,
    load_square,
    load_unit,
    load_weights,
    pair_of_program,
    split,
    store_rows,
    stretch_of_program,
    without_padding,
)
from softattn.kernels.launching import CHANGING, empty_rows, rows_argument
from softattn.kernels.pieces import Pieces, Weights, middle_arguments, weights_arguments
from softattn.kernels.token_pass import TokenPass


class NearFieldOutput(NamedTuple):
    """What ``near_field_output`` returns.

    output: O, (batch, heads, n, d_v), stored in the order of the tokens' memory.
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
    order: Tensor,
    near_field: int,
    rate: float,
    floor: float,
    underflow: float = 0.0,
    center: Tensor | None = None,
    padding: Tensor | None = None,
) -> NearFieldOutput:
    """O = (P W + R V) / D̃, where D̃ has the sign of D and the magnitude max(|D|, floor · T).

    Runs are ``near_field`` tokens that follow each other in ``order``. With K = k(X, X),

        D = P z + R 1,   T = P |z| + |R| 1,
        R_ij = K_ij − (P M Pᵀ)_ij for i and j of one run, from −1, or 0 where i = j, to 1; else 0.

    Args:
        tokens: X, (batch, heads, n, d).
        landmarks: L, (batch, heads, m, d).
        values: V, (batch, heads, n, d_v), in the dtype of the tokens.
        weights: W, and z, in pieces; or whole, (batch, heads, m, d_v + 1), float32.
        middle: M, (batch, heads, m, m), float32 or in pieces.
        order: (batch, heads, n), int64, which token comes in each place. No tensor is copied into
            this order: the kernel loads and stores the rows of the tokens where they are.
        near_field: tokens of a run.
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
        one_block=True,
    )
    result = NearFieldOutput(
        output=empty_rows(d_v, tokens, values.dtype), denominator=tiles.empty(tiles.n)
    )
    tiles.launch(
        _near_field_output,
        tiles.stretches(),
        **weights_arguments("w", "z", weights, d_v, tokens.dtype),
        **rows_argument("v", values),
        **middle_arguments(middle, tokens.dtype),
        order_ptr=order.contiguous(),
        **rows_argument("o", result.output),
        denominator_ptr=result.denominator,
        floor=floor,
        underflow=underflow,
        run=near_field,
    )
    return result


@triton.jit(do_not_specialize=CHANGING)
def _near_field_output(
    # tokens and landmarks
    x_ptr, x_batch, x_head, x_row: tl.constexpr,
    l_ptr, l_batch, l_head, l_row: tl.constexpr,
    center_ptr, padding_ptr,
    # W, z, V, M and the order
    w_ptr, w_rest_ptr, w_unit_ptr, w_batch, w_head, w_row: tl.constexpr, z_ptr,
    v_ptr, v_batch, v_head, v_row: tl.constexpr,
    middle_ptr, middle_rest_ptr, middle_unit_ptr, order_ptr,
    # outputs
    o_ptr, o_batch, o_head, o_row: tl.constexpr, denominator_ptr,
    # sizes
    n, m, heads, stretches, length, run, rate, floor, underflow,
    D: tl.constexpr, D_V: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """o_i = (Σ_j P_ij w_j + Σ_j R_ij v_j) / D̃_i over one stretch of the order."""
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
    order_ptr += pair * n
    o_ptr += batch * o_batch + head * o_head
    denominator_ptr += pair * n
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
    token = tl.arange(0, BLOCK_N)
    begin, end = stretch_of_program(unit, stretches, length, n)
    for first in range(begin, end, BLOCK_N):
        inside = token < n - first
        row, valid = tokens_in_order(order_ptr, padding_ptr, first, token, inside)
        # [BLOCK_N, BLOCK_D], [BLOCK_N]
        x, x_square = load_points(x_ptr, None, row, x_row, valid, center_ptr, D, BLOCK_D)
        # [BLOCK_N, BLOCK_M]
        p = tl.exp2(exponent(x, x_square, l_columns, l_square, rate, PRECISION))
        p_first, p_rest, _ = split(p, DTYPE, True)
        # [BLOCK_M, BLOCK_V] twice, [BLOCK_M]. Factors are loaded where they are needed: shared
        # memory does not hold all of them.
        w, w_rest, z = load_weights(
            w_ptr, w_rest_ptr, z_ptr, 0, landmark, w_row, inside_m, D_V, BLOCK_V
        )
        o = w_unit * dot(p_first, p_rest, w, w_rest, PIECES, PIECES, PRECISION)
        denominator = tl.sum(p * z[None, :], 1)
        terms = tl.sum(p * tl.abs(z)[None, :], 1)
        # [BLOCK_N, BLOCK_M], one piece of M after the other.
        middle = load_square(middle_ptr, landmark, landmark, m)
        p_middle = dot(p_first, p_rest, middle, middle, PIECES, 1, PRECISION)
        if PIECES == 2:
            middle = load_square(middle_rest_ptr, landmark, landmark, m)
            p_middle += dot(p_first, p_first, middle, middle, 1, 1, PRECISION)
        p_middle *= middle_unit
        a_first, a_rest, a_unit = split(p_middle, DTYPE, False)
        near_begin, near_end = runs_of_tile(first, BLOCK_N, run, n)
        for other in range(near_begin, near_end, BLOCK_N):
            near_row, near = tokens_in_order(
                order_ptr, padding_ptr, other, token, token < near_end - other
            )
            # [BLOCK_N, BLOCK_D], [BLOCK_N]
            y, y_square = load_points(x_ptr, None, near_row, x_row, near, center_ptr, D, BLOCK_D)
            # [BLOCK_N, BLOCK_V]
            v = load_rows(v_ptr, None, near_row, v_row, near, D_V, BLOCK_V)
            # [BLOCK_N, BLOCK_M]
            q = tl.exp2(exponent(y, y_square, l_columns, l_square, rate, PRECISION))
            q_first, q_rest, _ = split(q, DTYPE, True)
            # [BLOCK_N, BLOCK_N]
            approximated = a_unit * dot(
                a_first, a_rest, tl.trans(q_first), tl.trans(q_rest), PIECES, PIECES, PRECISION
            )
            own, of_one_run = pairs_of_runs(first + token, valid, other + token, near, run)
            k = near_kernel(x, x_square, y, y_square, own, rate, PRECISION)
            r, _free = remainder(k, approximated, own, of_one_run)
            r_first, r_rest, _ = split(r, DTYPE, True)
            o += dot(r_first, r_rest, v, v, PIECES, 1, PRECISION)
            denominator += tl.sum(r, 1)
            terms += tl.sum(tl.abs(r), 1)
        to = denominator_ptr + row
        o *= floored_share(denominator, terms, floor, underflow, to, inside)[:, None]
        if padding_ptr is not None:
            o = tl.where(valid[:, None], o, 0.0)
        store_rows(o_ptr, None, row, o_row, o, inside, D_V, BLOCK_V)


@triton.jit
def tokens_in_order(order_ptr, padding_ptr, first, place, inside):  # [places] twice
    """The rows of the tokens in the places from ``first`` on, and which are not padding."""
    # In 32 bits, for they stay in registers until the last of their tiles is loaded.
    row = tl.load(order_ptr + (first + place), mask=inside, other=0).to(tl.int32)
    return row, without_padding(padding_ptr, 0, row, inside)


@triton.jit
def runs_of_tile(first, BLOCK_N: tl.constexpr, run, n):
    """The first place of the runs that a tile of places meets, and the one after their last."""
    last = tl.minimum(first + BLOCK_N, n) - 1
    return first // run * run, tl.minimum((last // run + 1) * run, n)


@triton.jit
def pairs_of_runs(rows, rows_valid, columns, columns_valid, run):  # [rows, columns] twice
    """Which pairs of places are one token, and which are of one run, both ``valid``."""
    of_one_run = rows[:, None] // run == columns[None, :] // run
    return (
        rows[:, None] == columns[None, :],
        of_one_run & rows_valid[:, None] & columns_valid[None, :],
    )


@triton.jit
def near_kernel(x, x_square, y, y_square, own, rate, PRECISION: tl.constexpr):  # [tokens, tokens]
    """k(x, y), exactly 1 where both are one token."""
    e = exponent(x, x_square, tl.trans(y), y_square, rate, PRECISION)
    return tl.exp2(tl.where(own, 0.0, e))


@triton.jit
def remainder(kernel, approximated, own, of_one_run):  # [tokens, tokens] twice
    """R, and where it is between its bounds, which only rounding or an inexact M passes."""
    difference = kernel - approximated
    bounded = tl.minimum(tl.maximum(difference, tl.where(own, 0.0, -1.0)), 1.0)
    return tl.where(of_one_run, bounded, 0.0), of_one_run & (bounded == difference)
