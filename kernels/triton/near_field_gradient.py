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
from softattn.kernels.near_field import remainder
from softattn.kernels.pieces import Pieces, Weights, middle_arguments, weights_arguments
from softattn.kernels.token_pass import TokenPass


class NearFieldGradient(NamedTuple):
    """The gradients of ``near_field_gradient``.

    tokens: dX, (batch, heads, n, d), in the dtype of the tokens.
    values: dV, (batch, heads, n, d_v), in the dtype of V.
    landmarks: dL of each stretch of tokens, (batch, heads, stretches, m, d), float32.
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
        near_field: tokens of a run, a power of two.
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
        near_field=near_field,
    )
    stretches = tiles.stretches()
    result = NearFieldGradient(
        tokens=tiles.empty(tiles.n, tiles.d, dtype=tokens.dtype),
        values=tiles.empty(tiles.n, d_v, dtype=values.dtype),
        landmarks=tiles.empty(stretches.number, tiles.m, tiles.d),
        middle=tiles.empty(stretches.number, tiles.m, tiles.m),
    )
    tiles.launch(
        _near_field_gradient,
        stretches,
        **rows_argument("v", values),
        **rows_argument("g", grad),
        **weights_arguments("w", "z", weights, d_v, tokens.dtype),
        **weights_arguments("ds", "du", grad_sums, d_v, tokens.dtype),
        **middle_arguments(middle, tokens.dtype),
        denominator_ptr=denominator,
        dd_ptr=grad_denominator,
        dx_ptr=result.tokens,
        dv_ptr=result.values,
        dl_ptr=result.landmarks,
        dm_ptr=result.middle,
        scale=scale,
        floor=floor,
        RUN=near_field,
    )
    return result


@triton.jit(do_not_specialize=CHANGING)
def _near_field_gradient(
    # tokens and landmarks
    x_ptr, x_batch, x_head, x_row: tl.constexpr,
    l_ptr, l_batch, l_head, l_row: tl.constexpr,
    center_ptr, padding_ptr,
    # V, G, W and z, dS and du, M, D̃ and dD̃
    v_ptr, v_batch, v_head, v_row: tl.constexpr,
    g_ptr, g_batch, g_head, g_row: tl.constexpr,
    w_ptr, w_rest_ptr, w_unit_ptr, w_batch, w_head, w_row: tl.constexpr, z_ptr,
    ds_ptr, ds_rest_ptr, ds_unit_ptr, ds_batch, ds_head, ds_row: tl.constexpr, du_ptr,
    middle_ptr, middle_rest_ptr, middle_unit_ptr, denominator_ptr, dd_ptr,
    # outputs; of dL and dM one for each stretch
    dx_ptr, dv_ptr, dl_ptr, dm_ptr,
    # sizes
    n, m, heads, stretches, length, rate, scale, floor, D: tl.constexpr, D_V: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    RUN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients from E and F over one stretch of tokens, in tiles of landmarks × tokens.

    dX_i = Σ_j E_ij (x_i − l_j) + Σ_j (F_ij + F_ji) (x_i − x_j)
    dL_j = Σ_i E_ij (l_j − x_i)
    dV_j = Σ_k P_jk dS_k + Σ_i R_ij G_i / D̃_i
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    PIECES: tl.constexpr = 1 if DTYPE == tl.float32 else 2
    unit, pair, batch, head, _number = pair_of_program(heads, stretches, 1)
    x_ptr += batch * x_batch + head * x_head
    l_ptr += batch * l_batch + head * l_head
    v_ptr += batch * v_batch + head * v_head
    g_ptr += batch * g_batch + head * g_head
    w_ptr += batch * w_batch + head * w_head
    ds_ptr += batch * ds_batch + head * ds_head
    middle_ptr += pair * m * m
    if PIECES == 2:
        w_rest_ptr += batch * w_batch + head * w_head
        ds_rest_ptr += batch * ds_batch + head * ds_head
        middle_rest_ptr += pair * m * m
    w_unit, ds_unit = load_unit(w_unit_ptr, pair), load_unit(ds_unit_ptr, pair)
    middle_unit = load_unit(middle_unit_ptr, pair)
    z_ptr += pair * m
    du_ptr += pair * m
    dx_ptr += pair * n * D
    dv_ptr += pair * n * D_V
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
    for first in tl.range(begin, end, BLOCK_N, disable_licm=True):
        inside = token < n - first
        valid = without_padding(padding_ptr, first, token, inside)
        at = pair * n + first + token
        # [BLOCK_N, BLOCK_D], [BLOCK_N]
        x, x_square = load_points(x_ptr, first, token, x_row, valid, center_ptr, D, BLOCK_D)
        # [BLOCK_N, BLOCK_V]
        v = load_rows(v_ptr, first, token, v_row, valid, D_V, BLOCK_V)
        g = load_rows(g_ptr, first, token, g_row, valid, D_V, BLOCK_V)
        # [BLOCK_N]
        denominator = tl.load(denominator_ptr + at, mask=inside, other=1.0)
        share = 1 / denominator
        dd = tl.load(dd_ptr + at, mask=valid, other=0.0)
        dd, dt = floored_gradient(dd, denominator, floor)
        x_columns, v_columns, g_columns = tl.trans(x), tl.trans(v), tl.trans(g)

        # [BLOCK_M, BLOCK_N]: P, and P M, both transposed.
        middle, middle_rest = load_middle(middle_ptr, middle_rest_ptr, landmark, landmark, m)
        middle_columns, middle_rest_columns = tl.trans(middle), tl.trans(middle_rest)
        p = tl.exp2(exponent(l, l_square, x_columns, x_square, rate, PRECISION))
        p = tl.where(valid[None, :], p, 0.0)
        p_first, p_rest, _ = split(p, DTYPE, True)
        p_middle = middle_unit * dot(
            middle_columns, middle_rest_columns, p_first, p_rest, PIECES, PIECES, PRECISION
        )
        a_first, a_rest, a_unit = split(p_middle, DTYPE, False)
        # [BLOCK_N, BLOCK_N]
        approximated = a_unit * dot(
            tl.trans(a_first), tl.trans(a_rest), p_first, p_rest, PIECES, PIECES, PRECISION
        )
        r, kernel, free = remainder(x, x_square, approximated, token, valid, rate, RUN, PRECISION)

        # [BLOCK_V, BLOCK_N]
        ds, ds_rest, du = load_weights(
            ds_ptr, ds_rest_ptr, du_ptr, 0, landmark, ds_row, inside_m, D_V, BLOCK_V
        )
        ds_columns, ds_rest_columns = tl.trans(ds), tl.trans(ds_rest)
        r_first, r_rest, r_unit = split(share[:, None] * r, DTYPE, False)
        dv = r_unit * dot(g_columns, g_columns, r_first, r_rest, 1, PIECES, PRECISION)
        dv = add_dot(
            dv, ds_unit, ds_columns, ds_rest_columns, p_first, p_rest, PIECES, PIECES, PRECISION
        )
        store_rows(dv_ptr, first, token, D_V, tl.trans(dv), inside, D_V, BLOCK_V)

        # [BLOCK_N, BLOCK_N]
        dr = share[:, None] * dot(g, g, v_columns, v_columns, 1, 1, PRECISION) + dd[:, None]
        dr += tl.where(r > 0, dt[:, None], tl.where(r < 0, -dt[:, None], 0.0))
        dr = tl.where(free, dr, 0.0)
        f = -scale * kernel * dr
        f += tl.trans(f)
        f_first, f_rest, f_unit = split(f, DTYPE, False)
        # [BLOCK_D, BLOCK_N]
        dx = tl.sum(f, 0)[None, :] * x_columns.to(tl.float32)
        dx -= f_unit * dot(x_columns, x_columns, f_first, f_rest, 1, PIECES, PRECISION)

        # [BLOCK_M, BLOCK_N]: dR P, transposed.
        dr_first, dr_rest, dr_unit = split(dr, DTYPE, False)
        q = dr_unit * dot(
            p_first, p_rest, tl.trans(dr_first), tl.trans(dr_rest), PIECES, PIECES, PRECISION
        )
        q_first, q_rest, q_unit = split(q, DTYPE, False)
        dm += q_unit * dot(
            p_first, p_rest, tl.trans(q_first), tl.trans(q_rest), PIECES, PIECES, PRECISION
        )
        dp = -(a_unit * dr_unit) * dot(
            a_first, a_rest, dr_first, dr_rest, PIECES, PIECES, PRECISION
        )
        dp -= (middle_unit * q_unit) * dot(
            middle, middle_rest, q_first, q_rest, PIECES, PIECES, PRECISION
        )

        w, w_rest, z = load_weights(
            w_ptr, w_rest_ptr, z_ptr, 0, landmark, w_row, inside_m, D_V, BLOCK_V
        )
        of_rows = w_unit * dot(w, w_rest, g_columns, g_columns, PIECES, 1, PRECISION)
        dp += share[None, :] * of_rows
        dp += dd[None, :] * z[:, None] + dt[None, :] * tl.abs(z)[:, None] + du[:, None]
        dp = add_dot(dp, ds_unit, ds, ds_rest, v_columns, v_columns, PIECES, 1, PRECISION)
        slope = -scale * p * dp
        slope_first, slope_rest, slope_unit = split(slope, DTYPE, False)
        dx += tl.sum(slope, 0)[None, :] * x_columns.to(tl.float32)
        dx -= slope_unit * dot(l_columns, l_columns, slope_first, slope_rest, 1, PIECES, PRECISION)
        store_rows(dx_ptr, first, token, D, tl.trans(dx), inside, D, BLOCK_D)
        slopes += tl.sum(slope, 1)
        slope_x += slope_unit * dot(slope_first, slope_rest, x, x, PIECES, 1, PRECISION)
    dl = slopes[:, None] * l.to(tl.float32) - slope_x
    store_rows(dl_ptr, unit * m, landmark, D, dl, inside_m, D, BLOCK_D)
    to = dm_ptr + unit * m * m + landmark[:, None] * m + landmark[None, :]
    tl.store(to, dm, mask=inside_m[:, None] & inside_m[None, :])
