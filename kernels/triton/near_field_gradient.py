"""The gradient pass of ``"token"`` with a near field: dX, dV and the partial sums of dL and dM."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from softattn.kernels.arithmetic import (
    add_dot,
    dot,
    exponent,
    floored_gradient,
    load_landmarks,
    load_points,
    load_rows,
    load_square,
    load_transposed,
    load_unit,
    load_weights,
    pair_of_program,
    split,
    store_rows,
    stretch_of_program,
)
from softattn.kernels.launching import CHANGING, empty_rows, rows_argument
from softattn.kernels.near_field import (
    near_kernel,
    pairs_of_runs,
    remainder,
    runs_of_tile,
    tokens_in_order,
)
from softattn.kernels.pieces import Pieces, Weights, middle_arguments, weights_arguments
from softattn.kernels.token_pass import TokenPass


class NearFieldGradient(NamedTuple):
    """The gradients of ``near_field_gradient``.

    tokens: dX, (batch, heads, n, d), in the dtype of the tokens, stored in their order in memory.
    values: dV, (batch, heads, n, d_v), likewise.
    landmarks: dL of each stretch of the order, as queries and then as keys: (batch, heads,
        2 · stretches, m, d), float32.
    middle: minus the near field's share of dM, Pᵀ dR P, for each stretch: (batch, heads, stretches,
        m, m), float32.
    """

    tokens: Tensor
    values: Tensor
    landmarks: Tensor
    middle: Tensor


def near_field_gradient(
    tokens: Tensor,
    landmarks: Tensor,
    values: Tensor,
    grad: Tensor,
    *,
    weights: Tensor | Weights,
    middle: Tensor | Pieces,
    denominator: Tensor,
    grad_denominator: Tensor,
    grad_sums: Tensor | Weights,
    order: Tensor,
    near_field: int,
    rate: float,
    scale: float,
    floor: float,
    center: Tensor | None = None,
    padding: Tensor | None = None,
) -> NearFieldGradient:
    """dX, dV, dL and the near field's dM through P = k(X, L) and R, see ``near_field_output``.

    With G = dO, the gradients dD and dT of D and T from dD̃ as in ``quotient_gradient``, and within
    runs

        dR_ij = G_i · v_j / D̃_i + dD_i + sign(R_ij) dT_i, or 0 where R_ij is at a bound
        dP = G Wᵀ / D̃ + dD zᵀ + dT |z|ᵀ + V dSᵀ + 1 duᵀ − dR P Mᵀ − dRᵀ P M
        E = −s P ∘ dP,   F = −s k(X, X) ∘ dR,

        dX = rowsum(E) X − E L + rowsum(F + Fᵀ) X − (F + Fᵀ) X,   dL = colsum(E) L − Eᵀ X,
        dV = P dS + Rᵀ (G / D̃),   dM = −Pᵀ dR P + …

    Two launches: one for the terms of the tokens as queries, one for those as keys, which adds the
    dX of the first.

    Args:
        tokens: X, (batch, heads, n, d).
        landmarks: L, (batch, heads, m, d).
        values: V, (batch, heads, n, d_v), in the dtype of the tokens.
        grad: G, likewise.
        weights: W, and z, in pieces; or whole, (batch, heads, m, d_v + 1), float32.
        middle: M, (batch, heads, m, m), float32 or in pieces.
        denominator: D̃, (batch, heads, n), its last bit 1 at the floor.
        grad_denominator: dD̃, likewise.
        grad_sums: dS, and du, in pieces; or whole, (batch, heads, m, d_v + 1), float32.
        order: (batch, heads, n), int64, which token comes in each place, as in
            ``near_field_output``.
        near_field: tokens of a run.
        rate: s log₂(e) / 2.
        scale: s.
        floor: the smallest magnitude of D̃, as a share of T.
        center: (batch, heads, d), subtracted from tokens and landmarks.
        padding: (batch, n), True at padded tokens, which are ignored; their gradient is 0.
    """
    d_v = values.shape[3]
    tiles = TokenPass(
        "near_field_gradient",
        tokens,
        landmarks,
        d_v,
        rate=rate,
        center=center,
        padding=padding,
        one_block=True,
    )
    stretches = tiles.stretches()
    result = NearFieldGradient(
        tokens=empty_rows(tiles.d, tokens),
        values=empty_rows(d_v, values),
        landmarks=tiles.empty(2 * stretches.number, tiles.m, tiles.d),
        middle=tiles.empty(stretches.number, tiles.m, tiles.m),
    )
    arguments = {
        **rows_argument("v", values),
        **rows_argument("g", grad),
        **middle_arguments(middle, tokens.dtype),
        "denominator_ptr": denominator,
        "dd_ptr": grad_denominator,
        "order_ptr": order.contiguous(),
        "of_queries_ptr": tiles.empty(tiles.n, tiles.d),
        "dl_ptr": result.landmarks,
        "run": near_field,
        "scale": scale,
        "floor": floor,
    }
    tiles.launch(
        _near_field_gradient,
        stretches,
        **arguments,
        **weights_arguments("w", "z", weights, d_v, tokens.dtype),
        **rows_argument("dx", None),
        **rows_argument("dv", None),
        dm_ptr=result.middle,
        KEYS=False,
    )
    tiles.launch(
        _near_field_gradient,
        stretches,
        **arguments,
        **weights_arguments("w", "z", grad_sums, d_v, tokens.dtype),
        **rows_argument("dx", result.tokens),
        **rows_argument("dv", result.values),
        dm_ptr=None,
        KEYS=True,
    )
    return result


@triton.jit(do_not_specialize=CHANGING)
def _near_field_gradient(
    # tokens and landmarks
    x_ptr, x_batch, x_head, x_row: tl.constexpr,
    l_ptr, l_batch, l_head, l_row: tl.constexpr,
    center_ptr, padding_ptr,
    # V, G, W and z or dS and du, M, D̃, dD̃ and the order
    v_ptr, v_batch, v_head, v_row: tl.constexpr,
    g_ptr, g_batch, g_head, g_row: tl.constexpr,
    w_ptr, w_rest_ptr, w_unit_ptr, w_batch, w_head, w_row: tl.constexpr, z_ptr,
    middle_ptr, middle_rest_ptr, middle_unit_ptr, denominator_ptr, dd_ptr, order_ptr,
    # dX of the queries, (batch, heads, n, D) by place, which the launch for keys adds
    of_queries_ptr,
    # outputs; of dL and dM one for each stretch
    dx_ptr, dx_batch, dx_head, dx_row: tl.constexpr,
    dv_ptr, dv_batch, dv_head, dv_row: tl.constexpr, dl_ptr, dm_ptr,
    # sizes
    n, m, heads, stretches, length, run, rate, scale, floor,
    D: tl.constexpr, D_V: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The terms of the tokens i as queries, or as KEYS, over one stretch of the order.

    As queries dP = G Wᵀ / D̃ + dD zᵀ + dT |z|ᵀ − dR P Mᵀ, and dR_ij goes to x_i. As keys
    dP = V dSᵀ + 1 duᵀ − dRᵀ P M, and dR_ji goes to x_i.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    PIECES: tl.constexpr = 1 if DTYPE == tl.float32 else 2
    unit, pair, batch, head, _number = pair_of_program(heads, stretches, 1)
    x_ptr += batch * x_batch + head * x_head
    l_ptr += batch * l_batch + head * l_head
    v_ptr += batch * v_batch + head * v_head
    g_ptr += batch * g_batch + head * g_head
    w_ptr += batch * w_batch + head * w_head
    middle_ptr += pair * m * m
    if PIECES == 2:
        w_rest_ptr += batch * w_batch + head * w_head
        middle_rest_ptr += pair * m * m
    w_unit, middle_unit = load_unit(w_unit_ptr, pair), load_unit(middle_unit_ptr, pair)
    z_ptr += pair * m
    denominator_ptr += pair * n
    dd_ptr += pair * n
    order_ptr += pair * n
    of_queries_ptr += pair * n * D
    if KEYS:
        dx_ptr += batch * dx_batch + head * dx_head
        dv_ptr += batch * dv_batch + head * dv_head
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
    # Σ_i E_ij x_i and Σ_i E_ij
    slope_x = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    slopes = tl.zeros([BLOCK_M], tl.float32)
    dm = tl.zeros([BLOCK_M, BLOCK_M], tl.float32)
    token = tl.arange(0, BLOCK_N)
    begin, end = stretch_of_program(unit, stretches, length, n)
    for first in range(begin, end, BLOCK_N):
        inside = token < n - first
        row, valid = tokens_in_order(order_ptr, padding_ptr, first, token, inside)
        # [BLOCK_N, BLOCK_D], [BLOCK_N]
        x, x_square = load_points(x_ptr, None, row, x_row, valid, center_ptr, D, BLOCK_D)
        x_columns = tl.trans(x)
        # V as keys, G as queries: [BLOCK_V, BLOCK_N]
        if KEYS:
            h = load_rows(v_ptr, None, row, v_row, valid, D_V, BLOCK_V)
        else:
            h = load_rows(g_ptr, None, row, g_row, valid, D_V, BLOCK_V)
            share, dd, dt = _load_gradients(denominator_ptr, dd_ptr, row, valid, floor)
        h_columns = tl.trans(h)
        # [BLOCK_M, BLOCK_N]
        p = tl.exp2(exponent(l, l_square, x_columns, x_square, rate, PRECISION))
        p = tl.where(valid[None, :], p, 0.0)
        p_first, p_rest, _ = split(p, DTYPE, True)
        # P M, or as keys P Mᵀ, transposed.
        p_middle = middle_unit * _middle_times(
            p_first, p_rest, middle_ptr, middle_rest_ptr, landmark, m, not KEYS, PRECISION
        )
        a_first, a_rest, a_unit = split(p_middle, DTYPE, False)
        # dR P, or as keys dRᵀ P, transposed.
        dr_p = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        dx = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
        dv = tl.zeros([BLOCK_V, BLOCK_N], tl.float32)
        near_begin, near_end = runs_of_tile(first, BLOCK_N, run, n)
        for other in range(near_begin, near_end, BLOCK_N):
            near_row, near = tokens_in_order(
                order_ptr, padding_ptr, other, token, token < near_end - other
            )
            y, y_square = load_points(x_ptr, None, near_row, x_row, near, center_ptr, D, BLOCK_D)
            y_columns = tl.trans(y)
            # P of the tokens j: [BLOCK_M, BLOCK_N]
            q = tl.exp2(exponent(l, l_square, y_columns, y_square, rate, PRECISION))
            q_first, q_rest, _ = split(q, DTYPE, True)
            approximated = a_unit * dot(
                tl.trans(q_first), tl.trans(q_rest), a_first, a_rest, PIECES, PIECES, PRECISION
            )
            # R_ij, or as keys R_ji, and its gradient: [j, i].
            own, of_one_run = pairs_of_runs(other + token, near, first + token, valid, run)
            k = near_kernel(y, y_square, x, x_square, own, rate, PRECISION)
            r, free = remainder(k, approximated, own, of_one_run)
            if KEYS:
                g = load_rows(g_ptr, None, near_row, g_row, near, D_V, BLOCK_V)
                share, dd, dt = _load_gradients(denominator_ptr, dd_ptr, near_row, near, floor)
                dr = share[:, None] * dot(g, g, h_columns, h_columns, 1, 1, PRECISION)
                dr += dd[:, None] + tl.where(r > 0, dt[:, None], tl.where(r < 0, -dt[:, None], 0.0))
                r_first, r_rest, r_unit = split(share[:, None] * r, DTYPE, False)
                g_columns = tl.trans(g)
                dv += r_unit * dot(g_columns, g_columns, r_first, r_rest, 1, PIECES, PRECISION)
            else:
                v = load_rows(v_ptr, None, near_row, v_row, near, D_V, BLOCK_V)
                dr = share[None, :] * dot(v, v, h_columns, h_columns, 1, 1, PRECISION)
                dr += dd[None, :] + tl.where(r > 0, dt[None, :], tl.where(r < 0, -dt[None, :], 0.0))
            dr = tl.where(free, dr, 0.0)
            f = -scale * k * dr
            f_first, f_rest, f_unit = split(f, DTYPE, False)
            dx += tl.sum(f, 0)[None, :] * x_columns.to(tl.float32)
            dx -= f_unit * dot(y_columns, y_columns, f_first, f_rest, 1, PIECES, PRECISION)
            dr_first, dr_rest, dr_unit = split(dr, DTYPE, False)
            dr_p += dr_unit * dot(q_first, q_rest, dr_first, dr_rest, PIECES, PIECES, PRECISION)
        # [BLOCK_M, BLOCK_V] twice, [BLOCK_M]
        w, w_rest, z = load_weights(
            w_ptr, w_rest_ptr, z_ptr, 0, landmark, w_row, inside_m, D_V, BLOCK_V
        )
        if KEYS:
            dv = add_dot(
                dv, w_unit, tl.trans(w), tl.trans(w_rest), p_first, p_rest,
                PIECES, PIECES, PRECISION,
            )  # fmt: skip
            # Again, for until here they would take registers. With the same ``other`` as before
            # the compiler would make one load of both.
            row = tl.load(order_ptr + (first + token), mask=inside, other=1)
            store_rows(dv_ptr, None, row, dv_row, tl.trans(dv), inside, D_V, BLOCK_V)
        q_first, q_rest, q_unit = split(dr_p, DTYPE, False)
        if not KEYS:
            dm += q_unit * dot(
                p_first, p_rest, tl.trans(q_first), tl.trans(q_rest), PIECES, PIECES, PRECISION
            )
        # [BLOCK_M, BLOCK_N]
        dp = w_unit * dot(w, w_rest, h_columns, h_columns, PIECES, 1, PRECISION)
        if KEYS:
            dp += z[:, None]
        else:
            dp *= share[None, :]
            dp += dd[None, :] * z[:, None] + dt[None, :] * tl.abs(z)[:, None]
        dp -= (middle_unit * q_unit) * _middle_times(
            q_first, q_rest, middle_ptr, middle_rest_ptr, landmark, m, KEYS, PRECISION
        )
        slope = -scale * p * dp
        slope_first, slope_rest, slope_unit = split(slope, DTYPE, False)
        dx += tl.sum(slope, 0)[None, :] * x_columns.to(tl.float32)
        dx -= slope_unit * dot(l_columns, l_columns, slope_first, slope_rest, 1, PIECES, PRECISION)
        dx = tl.trans(dx)
        if KEYS:
            dx += load_rows(of_queries_ptr, first, token, D, inside, D, BLOCK_D)
            store_rows(dx_ptr, None, row, dx_row, dx, inside, D, BLOCK_D)
        else:
            store_rows(of_queries_ptr, first, token, D, dx, inside, D, BLOCK_D)
        slopes += tl.sum(slope, 1)
        slope_x += slope_unit * dot(slope_first, slope_rest, x, x, PIECES, 1, PRECISION)
    dl = slopes[:, None] * l.to(tl.float32) - slope_x
    # Of each pair first the sums of the queries, then those of the keys.
    to = pair * stretches + unit + (stretches if KEYS else 0)
    store_rows(dl_ptr, to * m, landmark, D, dl, inside_m, D, BLOCK_D)
    if not KEYS:
        to = dm_ptr + unit * m * m + landmark[:, None] * m + landmark[None, :]
        tl.store(to, dm, mask=inside_m[:, None] & inside_m[None, :])


@triton.jit
def _middle_times(
    p, p_rest, middle_ptr, middle_rest_ptr, landmark, m,
    TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """M, or Mᵀ, times pieces [landmarks, tokens]. Shared memory holds one piece of M at a time."""
    PIECES: tl.constexpr = 1 if middle_rest_ptr is None else 2
    middle = _load_middle(middle_ptr, landmark, m, TRANSPOSED)
    product = dot(middle, middle, p, p_rest, 1, PIECES, PRECISION)
    if PIECES == 2:
        middle = _load_middle(middle_rest_ptr, landmark, m, TRANSPOSED)
        product += dot(middle, middle, p, p, 1, 1, PRECISION)
    return product


@triton.jit
def _load_middle(ptr, landmark, m, TRANSPOSED: tl.constexpr):
    if TRANSPOSED:
        middle = load_transposed(ptr, landmark, landmark, m)
    else:
        middle = load_square(ptr, landmark, landmark, m)
    return middle


@triton.jit
def _load_gradients(denominator_ptr, dd_ptr, row, valid, floor):  # [tokens] three times
    """1 / D̃, dD and dT."""
    denominator = tl.load(denominator_ptr + row, mask=valid, other=1.0)
    dd = tl.load(dd_ptr + row, mask=valid, other=0.0)
    dd, dt = floored_gradient(dd, denominator, floor)
    return 1 / denominator, dd, dt
