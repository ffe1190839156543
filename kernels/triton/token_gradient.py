"""The gradient pass: one recomputation of P gives dX, dV and the partial sums of dL."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from softattn.kernels.arithmetic import (
    add_dot,
    blocks_of,
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
    shifted,
    split,
    store_rows,
    stretch_of_program,
    through_middle,
    without_padding,
)
from softattn.kernels.launching import CHANGING, empty_rows, padding_argument, rows_argument
from softattn.kernels.pieces import Pieces, Weights, middle_arguments, weights_arguments
from softattn.kernels.token_pass import TokenPass


class QueryTerms(NamedTuple):
    """What dP takes from tokens that are queries, O = P W or a quotient of it.

    grad: G = dO, (batch, heads, n, d_v), in the dtype of the tokens.
    weights: W, and z, in pieces; or whole, (batch, heads, m, d_v), or d_v + 1 columns with z, in
        float32 or the dtype of the tokens.
    denominator: D̃ of the quotient, (batch, heads, n), its last bit 1 at the floor; or None.
    grad_denominator: dD̃, likewise.
    diagonal: c, (batch, heads, n), or None.
    grad_diagonal: dc, likewise.
    middle: M + Mᵀ, (batch, heads, m, m), float32 or in pieces, or None.
    row_shift: log₂ of what each row of P is divided by, (batch, heads, n); or None.
    floor: the smallest magnitude of D̃, as a share of the sum of its absolute terms.

    Without z in ``weights``, ``grad_denominator`` belongs to the row sums of P: z is 1.
    """

    grad: Tensor
    weights: Tensor | Weights
    denominator: Tensor | None = None
    grad_denominator: Tensor | None = None
    diagonal: Tensor | None = None
    grad_diagonal: Tensor | None = None
    middle: Tensor | Pieces | None = None
    row_shift: Tensor | None = None
    floor: float = 0.0


class KeyTerms(NamedTuple):
    """What dP takes from tokens that are keys, S = Pᵀ (w V) and u = Pᵀ w.

    values: V, (batch, heads, n, d_v), in the dtype of the tokens.
    grad_sums: dS, and du, in pieces; or whole, (batch, heads, m, d_v), or d_v + 1 columns with du,
        in float32.
    key_weights: w, (batch, heads, n), float32; None is 1.
    grad_key_weights: the diagonal's share of dw, likewise; None is 0.
    """

    values: Tensor
    grad_sums: Tensor | Weights
    key_weights: Tensor | None = None
    grad_key_weights: Tensor | None = None


class TokenGradient(NamedTuple):
    """The gradients of ``token_gradient``, None where there is no such input.

    tokens: dX, (batch, heads, n, d), in the dtype of the tokens and stored as they are.
    landmarks: dL of each stretch of tokens, (batch, heads, stretches, m, d), float32.
    values: dV, (batch, heads, n, d_v), likewise as V.
    key_weights: dw, (batch, heads, n), float32.
    """

    tokens: Tensor
    landmarks: Tensor
    values: Tensor | None
    key_weights: Tensor | None


# Shared memory does not hold the tiles of more features, which float32's precision doubles.
_MOST_FLOAT32_FEATURES = 128


def token_gradient(
    tokens: Tensor,
    landmarks: Tensor,
    *,
    queries: QueryTerms | None,
    keys: KeyTerms | None,
    rate: float,
    scale: float,
    center: Tensor | None = None,
    padding: Tensor | None = None,
    landmark_padding: Tensor | None = None,
) -> TokenGradient:
    """dX, dL, dV and dw through P = k(X, L).

    With E = −s P ∘ dP:  dX = rowsum(E) X − E L,  dL = colsum(E) L − Eᵀ X,
    dV_i = w_i (P_i dS + c_i G_i / D̃_i),  dw_i = Σ_j P_ij (v_i · dS_j + du_j) + c_i h_i,
    where, of the terms that apply,

        dP_ij = G_i · W_j / D̃_i + dD_i z_j + dT_i |z_j| − dc_i (P (M + Mᵀ))_ij
                + w_i (v_i · dS_j + du_j)

    with D̃ = sign(D) max(|D|, floor · T), and dD, dT and h as in ``quotient_gradient``.

    Self-attention passes ``queries`` and ``keys``, cross-attention one of them for each side.

    Args:
        tokens: X, (batch, heads, n, d).
        landmarks: L, (batch, heads, m, d); in exact attention the keys.
        queries: the terms of the first kind.
        keys: the terms of the second kind.
        rate: s log₂(e) / 2.
        scale: s.
        center: (batch, heads, d), subtracted from tokens and landmarks.
        padding: (batch, n), True at padded tokens, which are ignored; their gradient is 0.
        landmark_padding: (batch, m), likewise for landmarks.

    Returns:
        dL is for ``add_stretches``. Landmarks that need several tiles take two launches, one for
        each side of P. So does float32 of many features, which also takes queries and keys apart.
    """
    d_v = _values_features(queries, keys)
    wide = tokens.dtype == torch.float32 and max(tokens.shape[3], d_v) > _MOST_FLOAT32_FEATURES
    common: dict[str, Any] = {
        "rate": rate,
        "scale": scale,
        "center": center,
        "padding": padding,
        "landmark_padding": landmark_padding,
    }
    if wide and queries is not None and keys is not None:
        return _queries_then_keys(tokens, landmarks, queries, keys, **common)
    diagonal = queries is not None and queries.diagonal is not None
    tiles = TokenPass(
        "token_gradient_diagonal" if diagonal else "token_gradient",
        tokens,
        landmarks,
        d_v,
        rate=rate,
        center=center,
        padding=padding,
    )
    arguments = {
        **_query_arguments(queries, d_v, tokens.dtype),
        **_key_arguments(keys, d_v, tokens.dtype),
        "l_padding_ptr": padding_argument(landmark_padding),
        "scale": scale,
    }
    grad_tokens = empty_rows(tiles.d, tokens)
    grad_values = None if keys is None else empty_rows(d_v, keys.values)
    weighted = keys is not None and keys.key_weights is not None
    grad_key_weights = tiles.empty(tiles.n) if weighted else None
    of_tokens = {
        **rows_argument("dx", grad_tokens),
        **rows_argument("dv", grad_values),
        "dkey_weight_ptr": grad_key_weights,
    }
    both_sides = tiles.blocks == 1 and not wide
    if not both_sides:
        tiles.launch(
            _token_gradient,
            tiles.stretches(),
            1,
            **arguments,
            **of_tokens,
            dl_ptr=None,
            ONE_BLOCK=False,
        )
        no_rows = rows_argument("dx", None) | rows_argument("dv", None)
        of_tokens = {**no_rows, "dkey_weight_ptr": None}
    stretches = tiles.stretches(tiles.blocks)
    partial = tiles.empty(stretches.number, tiles.m, tiles.d)
    tiles.launch(
        _token_gradient,
        stretches,
        tiles.blocks,
        **arguments,
        **of_tokens,
        dl_ptr=partial,
        ONE_BLOCK=both_sides,
    )
    return TokenGradient(grad_tokens, partial, grad_values, grad_key_weights)


def _values_features(queries: QueryTerms | None, keys: KeyTerms | None) -> int:
    if keys is not None:
        return keys.values.shape[3]
    assert queries is not None, "neither queries nor keys"
    return queries.grad.shape[3]


def _query_arguments(queries: QueryTerms | None, d_v: int, dtype: torch.dtype) -> dict[str, object]:
    terms = dict.fromkeys(QueryTerms._fields) if queries is None else queries._asdict()
    return {
        **rows_argument("g", terms["grad"]),
        **weights_arguments("w", "z", terms["weights"], d_v, dtype),
        **middle_arguments(terms["middle"], dtype),
        "denominator_ptr": terms["denominator"],
        "dd_ptr": terms["grad_denominator"],
        "diagonal_ptr": terms["diagonal"],
        "dc_ptr": terms["grad_diagonal"],
        "shift_ptr": terms["row_shift"],
        "floor": terms["floor"] or 0.0,
    }


def _key_arguments(keys: KeyTerms | None, d_v: int, dtype: torch.dtype) -> dict[str, object]:
    terms = dict.fromkeys(KeyTerms._fields) if keys is None else keys._asdict()
    return {
        **rows_argument("v", terms["values"]),
        **weights_arguments("ds", "du", terms["grad_sums"], d_v, dtype),
        "key_weight_ptr": terms["key_weights"],
        "own_dkey_weight_ptr": terms["grad_key_weights"],
    }


def _queries_then_keys(
    tokens: Tensor, landmarks: Tensor, queries: QueryTerms, keys: KeyTerms, **common: Any
) -> TokenGradient:
    """``token_gradient`` as the sum of two."""
    of_queries = token_gradient(tokens, landmarks, queries=queries, keys=None, **common)
    of_keys = token_gradient(tokens, landmarks, queries=None, keys=keys, **common)
    assert of_keys.values is not None
    if queries.diagonal is not None and queries.denominator is not None:
        own_share = (queries.diagonal / queries.denominator)[..., None] * queries.grad
        if keys.key_weights is not None:
            own_share *= keys.key_weights[..., None]
        if common["padding"] is not None:
            own_share = own_share.masked_fill(common["padding"].bool()[:, None, :, None], 0)
        of_keys.values.add_(own_share)
    of_keys.tokens.add_(of_queries.tokens)
    return of_keys._replace(landmarks=torch.cat([of_queries.landmarks, of_keys.landmarks], 2))


@triton.jit(do_not_specialize=CHANGING)
def _token_gradient(
    # tokens and landmarks
    x_ptr, x_batch, x_head, x_row: tl.constexpr,
    l_ptr, l_batch, l_head, l_row: tl.constexpr,
    center_ptr, padding_ptr, l_padding_ptr,
    # tokens as queries: G, W and z, D̃, dD̃, c, dc, M + Mᵀ and the shift
    g_ptr, g_batch, g_head, g_row: tl.constexpr,
    w_ptr, w_rest_ptr, w_unit_ptr, w_batch, w_head, w_row: tl.constexpr, z_ptr,
    denominator_ptr, dd_ptr, diagonal_ptr, dc_ptr,
    middle_ptr, middle_rest_ptr, middle_unit_ptr, shift_ptr, floor,
    # tokens as keys: V, dS and du, w and the diagonal's share of dw
    v_ptr, v_batch, v_head, v_row: tl.constexpr,
    ds_ptr, ds_rest_ptr, ds_unit_ptr, ds_batch, ds_head, ds_row: tl.constexpr, du_ptr,
    key_weight_ptr, own_dkey_weight_ptr,
    # outputs; of dL one for each stretch
    dx_ptr, dx_batch, dx_head, dx_row: tl.constexpr,
    dv_ptr, dv_batch, dv_head, dv_row: tl.constexpr, dkey_weight_ptr, dl_ptr,
    # sizes
    n, m, heads, stretches, length, rate, scale, D: tl.constexpr, D_V: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    ONE_BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients from E = −s P ∘ dP over one stretch of tokens, in tiles of landmarks × tokens.

        dX_i = Σ_j E_ij (x_i − l_j)      dV_i = w_i (Σ_j P_ij dS_j + c_i G_i / D̃_i)
        dL_j = Σ_i E_ij (l_j − x_i)      dw_i = Σ_j P_ij (v_i · dS_j + du_j) + its diagonal's share

    A program that writes dL holds one block of landmarks; one that does not takes all in turn.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    PIECES: tl.constexpr = 1 if DTYPE == tl.float32 else 2
    W_PIECES: tl.constexpr = 1 if w_rest_ptr is None else 2
    QUERIES: tl.constexpr = g_ptr is not None
    QUOTIENT: tl.constexpr = z_ptr is not None
    DIAGONAL: tl.constexpr = diagonal_ptr is not None
    KEYS: tl.constexpr = v_ptr is not None
    ONES: tl.constexpr = du_ptr is not None
    WEIGHTED: tl.constexpr = key_weight_ptr is not None
    WRITE_TOKENS: tl.constexpr = dx_ptr is not None
    HOLDS_ONE: tl.constexpr = dl_ptr is not None
    blocks = blocks_of(m, BLOCK_M) if HOLDS_ONE and not ONE_BLOCK else 1
    unit, pair, batch, head, number = pair_of_program(heads, stretches, blocks)
    x_ptr += batch * x_batch + head * x_head
    l_ptr += batch * l_batch + head * l_head
    if center_ptr is not None:
        center_ptr += pair * D
    if padding_ptr is not None:
        padding_ptr += batch * n
    if l_padding_ptr is not None:
        l_padding_ptr += batch * m
    if WRITE_TOKENS:
        dx_ptr += batch * dx_batch + head * dx_head
    if QUERIES:
        g_ptr += batch * g_batch + head * g_head
        w_ptr += batch * w_batch + head * w_head
        if W_PIECES == 2:
            w_rest_ptr += batch * w_batch + head * w_head
        w_unit = load_unit(w_unit_ptr, pair)
    if QUOTIENT:
        z_ptr += pair * m
    if KEYS:
        v_ptr += batch * v_batch + head * v_head
        ds_ptr += batch * ds_batch + head * ds_head
        if PIECES == 2:
            ds_rest_ptr += batch * ds_batch + head * ds_head
        ds_unit = load_unit(ds_unit_ptr, pair)
        if WRITE_TOKENS:
            dv_ptr += batch * dv_batch + head * dv_head
    if ONES:
        du_ptr += pair * m
    if DIAGONAL:
        middle_ptr += pair * m * m
        if PIECES == 2:
            middle_rest_ptr += pair * m * m
        middle_unit = load_unit(middle_unit_ptr, pair)

    landmark = tl.arange(0, BLOCK_M)
    if HOLDS_ONE:
        own = number * BLOCK_M
        rows = own + landmark
        # [BLOCK_M, BLOCK_D], [BLOCK_M], [BLOCK_M]
        l, l_square, real = load_landmarks(
            l_ptr, own, landmark, l_row, rows < m, l_padding_ptr, center_ptr, D, BLOCK_D
        )
        l_columns = tl.trans(l)
        # [BLOCK_M, BLOCK_V] twice, [BLOCK_M]
        if QUERIES:
            w, w_rest, z = load_weights(
                w_ptr, w_rest_ptr, z_ptr, own, landmark, w_row, real, D_V, BLOCK_V
            )
        if KEYS:
            ds, ds_rest, du = load_weights(
                ds_ptr, ds_rest_ptr, du_ptr, own, landmark, ds_row, real, D_V, BLOCK_V
            )
            ds_columns, ds_rest_columns = tl.trans(ds), tl.trans(ds_rest)
        if DIAGONAL and ONE_BLOCK:
            # [BLOCK_M, BLOCK_M] twice
            middle, middle_rest = load_middle(middle_ptr, middle_rest_ptr, landmark, landmark, m)
    # Σ_i E_ij x_i and Σ_i E_ij
    slope_x = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    slopes = tl.zeros([BLOCK_M], tl.float32)
    token = tl.arange(0, BLOCK_N)
    begin, end = stretch_of_program(unit, stretches, length, n)
    for first in range(begin, end, BLOCK_N):
        inside = token < n - first
        valid = without_padding(padding_ptr, first, token, inside)
        at = pair * n + first + token
        # [BLOCK_N, BLOCK_D], [BLOCK_N]
        x, x_square = load_points(x_ptr, first, token, x_row, valid, center_ptr, D, BLOCK_D)
        # [BLOCK_N, BLOCK_V]
        g = load_rows(g_ptr, first, token, g_row, valid, D_V, BLOCK_V) if QUERIES else 0.0
        if KEYS:
            v = load_rows(v_ptr, first, token, v_row, valid, D_V, BLOCK_V)
        # [BLOCK_N]
        share = tl.full([BLOCK_N], 1.0, tl.float32)
        if QUOTIENT:
            denominator = tl.load(denominator_ptr + at, mask=inside, other=1.0)
            share = 1 / denominator
        if WEIGHTED:
            weight = tl.load(key_weight_ptr + at, mask=valid, other=0.0)
            dweight = tl.zeros([BLOCK_N], tl.float32)
        else:
            weight = 1.0
        x_columns = tl.trans(x)
        # [BLOCK_D, BLOCK_N], [BLOCK_V, BLOCK_N]
        dx = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
        dv = tl.zeros([BLOCK_V, BLOCK_N], tl.float32)
        for block in range(0, BLOCK_M if HOLDS_ONE else m, BLOCK_M):
            if not HOLDS_ONE:
                rows = block + landmark
                l, l_square, real = load_landmarks(
                    l_ptr, block, landmark, l_row, rows < m, l_padding_ptr, center_ptr, D, BLOCK_D
                )
                l_columns = tl.trans(l)
                if QUERIES:
                    w, w_rest, z = load_weights(
                        w_ptr, w_rest_ptr, z_ptr, block, landmark, w_row, real, D_V, BLOCK_V
                    )
                if KEYS:
                    ds, ds_rest, du = load_weights(
                        ds_ptr, ds_rest_ptr, du_ptr, block, landmark, ds_row, real, D_V, BLOCK_V
                    )
                    ds_columns, ds_rest_columns = tl.trans(ds), tl.trans(ds_rest)
            # [BLOCK_M, BLOCK_N]
            e = exponent(l, l_square, x_columns, x_square, rate, PRECISION)
            if shift_ptr is not None:
                e = shifted(e, tl.load(shift_ptr + at, mask=valid, other=0.0), real)
            p = tl.exp2(e)
            if padding_ptr is not None or ONES:
                p = tl.where(valid[None, :], p, 0.0)
            p_first, p_rest, _ = split(p, DTYPE, True)
            if KEYS and WRITE_TOKENS:
                dv = add_dot(
                    dv, ds_unit, ds_columns, ds_rest_columns, p_first, p_rest,
                    PIECES, PIECES, PRECISION,
                )  # fmt: skip
                if HOLDS_ONE:
                    # At once: it occupies registers.
                    _store_dv(
                        dv_ptr, dv_row, first, token, dv, diagonal_ptr, at, share, g, weight,
                        inside, D_V, BLOCK_V, WEIGHTED,
                    )  # fmt: skip
            dp = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            if WEIGHTED:
                v_columns = tl.trans(v)
                dp = add_dot(dp, ds_unit, ds, ds_rest, v_columns, v_columns, PIECES, 1, PRECISION)
                dp += du[:, None]
                dweight += tl.sum(p * dp, 0)
                # Multiplied by the share again below.
                dp = (weight / share)[None, :] * dp
            if DIAGONAL:
                if ONE_BLOCK:
                    middle_p = middle_unit * dot(
                        middle, middle_rest, p_first, p_rest, PIECES, PIECES, PRECISION
                    )
                else:
                    middle_p = through_middle(
                        x_columns, x_square, l_ptr, l_row, middle_ptr, middle_rest_ptr,
                        middle_unit, center_ptr, rows, m, rate, D, BLOCK_M, BLOCK_D, PRECISION,
                    )  # fmt: skip
                dc = tl.load(dc_ptr + at, mask=inside, other=0.0)
                dp -= (dc / share)[None, :] * middle_p
            if QUERIES:
                g_columns = tl.trans(g)
                dp = add_dot(dp, w_unit, w, w_rest, g_columns, g_columns, W_PIECES, 1, PRECISION)
            if QUOTIENT:
                dp = share[None, :] * dp
            if dd_ptr is not None:
                dd = tl.load(dd_ptr + at, mask=valid, other=0.0)
                if QUOTIENT:
                    dd, dt = floored_gradient(dd, denominator, floor)
                    dp += dd[None, :] * z[:, None] + dt[None, :] * tl.abs(z)[:, None]
                else:
                    dp += dd[None, :]
            if KEYS and not WEIGHTED:
                v_columns = tl.trans(v)
                dp = add_dot(dp, ds_unit, ds, ds_rest, v_columns, v_columns, PIECES, 1, PRECISION)
            if ONES and not WEIGHTED:
                dp += du[:, None]
            slope = -scale * p * dp
            slope_first, slope_rest, slope_unit = split(slope, DTYPE, False)
            if WRITE_TOKENS:
                slope_l = slope_unit * dot(
                    l_columns, l_columns, slope_first, slope_rest, 1, PIECES, PRECISION
                )
                dx += tl.sum(slope, 0)[None, :] * x_columns.to(tl.float32) - slope_l
            if HOLDS_ONE:
                slopes += tl.sum(slope, 1)
                slope_x += slope_unit * dot(slope_first, slope_rest, x, x, PIECES, 1, PRECISION)
        if WRITE_TOKENS:
            store_rows(dx_ptr, first, token, dx_row, tl.trans(dx), inside, D, BLOCK_D)
            if KEYS and not HOLDS_ONE:
                _store_dv(
                    dv_ptr, dv_row, first, token, dv, diagonal_ptr, at, share, g, weight, inside,
                    D_V, BLOCK_V, WEIGHTED,
                )  # fmt: skip
            if WEIGHTED:
                if own_dkey_weight_ptr is not None:
                    dweight += tl.load(own_dkey_weight_ptr + at, mask=valid, other=0.0)
                tl.store(dkey_weight_ptr + at, dweight, mask=inside)
    if HOLDS_ONE:
        dl = slopes[:, None] * l.to(tl.float32) - slope_x
        store_rows(dl_ptr, unit * m + own, landmark, D, dl, rows < m, D, BLOCK_D)


@triton.jit
def _store_dv(
    dv_ptr, dv_row, first, token, dv, diagonal_ptr, at, share, g, weight, inside,
    D_V: tl.constexpr, BLOCK_V: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Stores dV of a tile of tokens, [BLOCK_V, tokens]; the exact diagonal adds c_i G_i / D̃_i."""
    dv = tl.trans(dv)
    if diagonal_ptr is not None:
        c = tl.load(diagonal_ptr + at, mask=inside, other=0.0)
        dv += (c * share)[:, None] * g.to(tl.float32)
    if WEIGHTED:
        dv *= weight[:, None]
    store_rows(dv_ptr, first, token, dv_row, dv, inside, D_V, BLOCK_V)
