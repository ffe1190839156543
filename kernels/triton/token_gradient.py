"""The gradient pass: one recomputation of P gives dX, dV and the partial sums of dL."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from softattn.kernels import configurations, launching
from softattn.kernels.arithmetic import (
    add_dot,
    dot,
    exponent,
    load_middle,
    load_pieces,
    load_points,
    load_rows,
    load_unit,
    split,
    store_rows,
    through_middle,
    without_padding,
)
from softattn.kernels.launching import block_of, padding_of, rows_of, stretches, strides_of
from softattn.kernels.pieces import Pieces, in_pieces


class AsQueries(NamedTuple):
    """The tokens asked, O = P W or a quotient of it: what came back to them.

    grad: G = dO, (batch, heads, n, d_v), in the dtype of the tokens.
    weights: W, (batch, heads, m, d_v), or d_v + 1 columns with z; float32 or as the tokens.
    denominator: D of the quotient, (batch, heads, n), or None.
    grad_denominator: dD, likewise.
    diagonal: c, (batch, heads, n), or None.
    grad_diagonal: dc, likewise.
    middle: M + Mᵀ, (batch, heads, m, m), float32, or None.
    row_shift: (batch, heads, n), of weights P 2^(−shift) that sum to 1, for which z is 1; or None.
    """

    grad: Tensor
    weights: Tensor
    denominator: Tensor | None = None
    grad_denominator: Tensor | None = None
    diagonal: Tensor | None = None
    grad_diagonal: Tensor | None = None
    middle: Tensor | None = None
    row_shift: Tensor | None = None


class AsKeys(NamedTuple):
    """The tokens were summed, S = Pᵀ V: what came back to the sums.

    values: V, (batch, heads, n, d_v), in the dtype of the tokens.
    grad_sums: dS, (batch, heads, m, d_v), or d_v + 1 columns with du; float32.
    """

    values: Tensor
    grad_sums: Tensor


def token_gradient(
    tokens: Tensor,
    landmarks: Tensor,
    *,
    queries: AsQueries | None,
    keys: AsKeys | None,
    rate: float,
    scale: float,
    center: Tensor | None = None,
    padding: Tensor | None = None,
    landmark_padding: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """dX, dV and dL of everything that P = k(X, L) had a part in.

    With w = −s P ∘ dP:  dX = rowsum(w) X − w L,  dL = colsum(w) L − wᵀ X,  dV = P dS + c G / D,
    where, of the terms that apply,

        dP_ij = G_i · W_j / D_i + dD_i z_j − dc_i (P (M + Mᵀ))_ij  +  v_i · dS_j + du_j.

    Self-attention hands in ``queries`` and ``keys``, cross-attention one of them for each side.

    Args:
        tokens: X, (batch, heads, n, d).
        landmarks: L, (batch, heads, m, d); in exact attention the keys.
        queries: see there.
        keys: see there.
        rate: s log₂(e) / 2.
        scale: s.
        center: (batch, heads, d), taken off tokens and landmarks.
        padding: (batch, n), True where a token has no gradient and is not to be read.
        landmark_padding: (batch, m), likewise for landmarks.

    Returns:
        dX (batch, heads, n, d) in the dtype of the tokens, dV likewise or None, and dL in float32.
        dL takes a sum over stretches of tokens, in their order. Landmarks that do not fit into one
        tile take two launches, one for each side of P; float32 of many features does so too, and
        takes queries and keys apart.
    """
    tokens, landmarks = rows_of(tokens), rows_of(landmarks)
    batch, heads, n, d = tokens.shape
    m = landmarks.shape[2]
    grad, weights, *per_token, middle, row_shift = queries or (None,) * len(AsQueries._fields)
    values, grad_sums = keys or (None, None)
    grad, values = (None if t is None else rows_of(t) for t in (grad, values))
    of_values = grad if values is None else values
    assert of_values is not None, "neither queries nor keys"
    d_v = of_values.shape[3]
    wide = tokens.dtype == torch.float32 and max(d, d_v) > _MOST_FLOAT32_FEATURES_AT_ONCE
    if wide and queries is not None and keys is not None:
        return _queries_then_keys(
            tokens,
            landmarks,
            queries,
            keys,
            rate=rate,
            scale=scale,
            center=center,
            padding=padding,
            landmark_padding=landmark_padding,
        )
    of_weights, z = _pieces_and_column(weights, d_v, tokens.dtype)
    of_sums, grad_ones = _pieces_and_column(grad_sums, d_v, tokens.dtype)
    of_middle = _NO_PIECES
    if middle is not None:
        of_middle = in_pieces(middle.contiguous(), tokens.dtype)
    device = launching.device_of(tokens.device)
    diagonal = queries is not None and queries.diagonal is not None
    variant = "token_gradient_diagonal" if diagonal else "token_gradient"
    chosen = configurations.choose(variant, d, d_v, m, tokens.dtype, device)
    blocks = max(triton.cdiv(m, chosen.landmarks), 1)
    both_sides = blocks == 1 and not wide
    grad_tokens = torch.empty(batch, heads, n, d, device=tokens.device, dtype=tokens.dtype)
    grad_values = None
    if values is not None:
        grad_values = torch.empty(batch, heads, n, d_v, device=tokens.device, dtype=values.dtype)

    def run(write_tokens: bool, write_landmarks: bool) -> Tensor | None:
        programs = blocks if write_landmarks and not write_tokens else 1
        number, length = stretches(n, chosen.tokens, batch * heads * programs, device)
        partial = None
        if write_landmarks:
            shape = (batch, heads, number, m, d)
            partial = torch.empty(shape, device=tokens.device, dtype=torch.float32)
        launching.launch(
            _token_gradient,
            (batch * heads * number, programs),
            tokens,
            landmarks,
            grad,
            *of_weights,
            z,
            values,
            *of_sums,
            grad_ones,
            *per_token,
            *of_middle,
            row_shift,
            center,
            padding_of(padding),
            padding_of(landmark_padding),
            grad_tokens,
            grad_values,
            partial,
            *strides_of(tokens),
            *strides_of(landmarks),
            *strides_of(grad),
            *strides_of(of_weights[0]),
            *strides_of(values),
            *strides_of(of_sums[0]),
            n,
            m,
            heads,
            number,
            length,
            rate,
            scale,
            D=d,
            D_V=d_v,
            ONE_BLOCK=both_sides,
            WRITE_TOKENS=write_tokens,
            WRITE_LANDMARKS=write_landmarks,
            BLOCK_N=chosen.tokens,
            BLOCK_M=chosen.landmarks,
            BLOCK_D=block_of(d),
            BLOCK_V=block_of(d_v),
            CENTERED=center is not None,
            PADDED=padding is not None,
            LANDMARKS_PADDED=landmark_padding is not None,
            QUERIES=queries is not None,
            KEYS=keys is not None,
            W_PIECES=1 if of_weights[1] is None else 2,
            QUOTIENT=z is not None,
            DIAGONAL=diagonal,
            NORMALIZED=queries is not None and queries.row_shift is not None,
            ONES=grad_ones is not None,
            PRECISION=device.precision,
            warps=chosen.warps,
            stages=chosen.stages,
        )
        return None if partial is None else partial.sum(2)

    if both_sides:
        grad_landmarks = run(write_tokens=True, write_landmarks=True)
    else:
        run(write_tokens=True, write_landmarks=False)
        grad_landmarks = run(write_tokens=False, write_landmarks=True)
    assert grad_landmarks is not None
    return grad_tokens, grad_values, grad_landmarks


# Of more features shared memory does not hold all tiles, which float32's precision doubles.
_MOST_FLOAT32_FEATURES_AT_ONCE = 128


def _queries_then_keys(
    tokens: Tensor,
    landmarks: Tensor,
    queries: AsQueries,
    keys: AsKeys,
    *,
    padding: Tensor | None,
    **common: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """``token_gradient`` as the sum of two."""
    common["padding"] = padding
    grad_tokens, _, grad_landmarks = token_gradient(
        tokens, landmarks, queries=queries, keys=None, **common
    )
    of_keys, grad_values, landmarks_of_keys = token_gradient(
        tokens, landmarks, queries=None, keys=keys, **common
    )
    assert grad_values is not None
    if queries.diagonal is not None and queries.denominator is not None:
        own_share = (queries.diagonal / queries.denominator)[..., None] * queries.grad
        if padding is not None:
            own_share = own_share.masked_fill(padding[:, None, :, None], 0)
        grad_values += own_share
    return grad_tokens.add_(of_keys), grad_values, grad_landmarks.add_(landmarks_of_keys)


_NO_PIECES = (None,) * len(Pieces._fields)


def _pieces_and_column(
    matrix: Tensor | None, columns: int, dtype: torch.dtype
) -> tuple[Pieces | tuple[None, ...], Tensor | None]:
    """The pieces of the first ``columns`` columns, and the column that follows, or None."""
    if matrix is None:
        return _NO_PIECES, None
    column = matrix[..., columns].contiguous() if matrix.shape[3] > columns else None
    return in_pieces(matrix[..., :columns], dtype), column


@triton.jit
def _token_gradient(
    x_ptr,
    l_ptr,
    g_ptr,
    w_ptr,
    w_rest_ptr,
    w_unit_ptr,
    z_ptr,
    v_ptr,
    ds_ptr,
    ds_rest_ptr,
    ds_unit_ptr,
    du_ptr,
    denominator_ptr,
    dd_ptr,
    diagonal_ptr,
    dc_ptr,
    middle_ptr,
    middle_rest_ptr,
    middle_unit_ptr,
    shift_ptr,
    center_ptr,
    padding_ptr,
    l_padding_ptr,
    dx_ptr,
    dv_ptr,
    dl_ptr,
    x_batch,
    x_head,
    x_row: tl.constexpr,
    l_batch,
    l_head,
    l_row: tl.constexpr,
    g_batch,
    g_head,
    g_row: tl.constexpr,
    w_batch,
    w_head,
    w_row: tl.constexpr,
    v_batch,
    v_head,
    v_row: tl.constexpr,
    ds_batch,
    ds_head,
    ds_row: tl.constexpr,
    n,
    m,
    heads,
    stretches,
    length,
    rate,
    scale,
    D: tl.constexpr,
    D_V: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    WRITE_TOKENS: tl.constexpr,
    WRITE_LANDMARKS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CENTERED: tl.constexpr,
    PADDED: tl.constexpr,
    LANDMARKS_PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    W_PIECES: tl.constexpr,
    QUOTIENT: tl.constexpr,
    DIAGONAL: tl.constexpr,
    NORMALIZED: tl.constexpr,
    ONES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """w = −s P ∘ dP over one stretch of tokens, and what follows from it.

    A program that writes both sides, or the landmarks' alone, holds one block of landmarks; one
    that writes the tokens' alone takes the blocks in turn.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    PIECES: tl.constexpr = 1 if DTYPE == tl.float32 else 2
    unit = tl.program_id(0).to(tl.int64)
    pair = unit // stretches
    batch, head = pair // heads, pair % heads
    x_ptr += batch * x_batch + head * x_head
    l_ptr += batch * l_batch + head * l_head
    dx_ptr += pair * n * D
    if CENTERED:
        center_ptr += pair * D
    if PADDED:
        padding_ptr += batch * n
    if LANDMARKS_PADDED:
        l_padding_ptr += batch * m
    if QUERIES:
        g_ptr += batch * g_batch + head * g_head
        w_ptr += batch * w_batch + head * w_head
        w_unit = 1.0
        if W_PIECES == 2:
            w_rest_ptr += batch * w_batch + head * w_head
            w_unit = load_unit(w_unit_ptr, pair, DTYPE)
    if QUOTIENT:
        z_ptr += pair * m
    if KEYS:
        v_ptr += batch * v_batch + head * v_head
        ds_ptr += batch * ds_batch + head * ds_head
        ds_unit = 1.0
        if PIECES == 2:
            ds_rest_ptr += batch * ds_batch + head * ds_head
            ds_unit = load_unit(ds_unit_ptr, pair, DTYPE)
    if ONES:
        du_ptr += pair * m
    if KEYS:
        dv_ptr += pair * n * D_V
    if DIAGONAL:
        middle_ptr += pair * m * m
        middle_unit = 1.0
        if PIECES == 2:
            middle_rest_ptr += pair * m * m
            middle_unit = load_unit(middle_unit_ptr, pair, DTYPE)
    HOLDS_ONE: tl.constexpr = WRITE_LANDMARKS

    landmark = tl.arange(0, BLOCK_M)
    if HOLDS_ONE:
        own = tl.program_id(1) * BLOCK_M
        rows = own + landmark
        real = without_padding(l_padding_ptr, own, landmark, rows < m, LANDMARKS_PADDED)
        # [BLOCK_M, BLOCK_D], [BLOCK_M]
        l, l_square = load_points(
            l_ptr + tl.cast(own, tl.int64) * l_row,
            landmark, l_row, real, center_ptr, D, BLOCK_D, CENTERED,
        )  # fmt: skip
        l_columns = tl.trans(l)
        # [BLOCK_M, BLOCK_V], [BLOCK_M]
        if QUERIES:
            w, w_rest = load_pieces(
                w_ptr, w_rest_ptr, own, landmark, w_row, real, D_V, BLOCK_V, W_PIECES
            )
        if QUOTIENT:
            z = tl.load(z_ptr + rows, mask=real, other=0.0)
        if ONES:
            du = tl.load(du_ptr + rows, mask=real, other=0.0)
        if KEYS:
            ds, ds_rest = load_pieces(
                ds_ptr, ds_rest_ptr, own, landmark, ds_row, real, D_V, BLOCK_V, PIECES
            )
            ds_columns, ds_rest_columns = tl.trans(ds), tl.trans(ds_rest)
        if DIAGONAL and ONE_BLOCK:
            # [BLOCK_M, BLOCK_M]
            middle, middle_rest = load_middle(
                middle_ptr, middle_rest_ptr, landmark, landmark, m, PIECES
            )
    # Σ_i w_ij x_i and Σ_i w_ij
    pushes = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    slopes = tl.zeros([BLOCK_M], tl.float32)
    token = tl.arange(0, BLOCK_N)
    start = unit % stretches * length
    for first in range(start, tl.minimum(start + length, n), BLOCK_N):
        inside = token < n - first
        valid = without_padding(padding_ptr, first, token, inside, PADDED)
        at = pair * n + first + token
        # [BLOCK_N, BLOCK_D], [BLOCK_N]
        x, x_square = load_points(
            x_ptr + first * x_row, token, x_row, valid, center_ptr, D, BLOCK_D, CENTERED
        )
        # [BLOCK_N, BLOCK_V], [BLOCK_N]
        if QUERIES:
            g = load_rows(g_ptr + first * g_row, token, g_row, valid, D_V, BLOCK_V)
        if KEYS:
            v = load_rows(v_ptr + first * v_row, token, v_row, valid, D_V, BLOCK_V)
        if QUOTIENT:
            share = 1 / tl.load(denominator_ptr + at, mask=inside, other=1.0)
        x_columns = tl.trans(x)
        # [BLOCK_D, BLOCK_N], [BLOCK_V, BLOCK_N]
        dx = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
        dv = tl.zeros([BLOCK_V, BLOCK_N], tl.float32)
        for block in range(0, BLOCK_M if HOLDS_ONE else m, BLOCK_M):
            if not HOLDS_ONE:
                rows = block + landmark
                real = without_padding(l_padding_ptr, block, landmark, rows < m, LANDMARKS_PADDED)
                l, l_square = load_points(
                    l_ptr + tl.cast(block, tl.int64) * l_row,
                    landmark, l_row, real, center_ptr, D, BLOCK_D, CENTERED,
                )  # fmt: skip
                l_columns = tl.trans(l)
                if QUERIES:
                    w, w_rest = load_pieces(
                        w_ptr, w_rest_ptr, block, landmark, w_row, real, D_V, BLOCK_V, W_PIECES
                    )
                if QUOTIENT:
                    z = tl.load(z_ptr + rows, mask=real, other=0.0)
                if ONES:
                    du = tl.load(du_ptr + rows, mask=real, other=0.0)
                if KEYS:
                    ds, ds_rest = load_pieces(
                        ds_ptr, ds_rest_ptr, block, landmark, ds_row, real, D_V, BLOCK_V, PIECES
                    )
                    ds_columns, ds_rest_columns = tl.trans(ds), tl.trans(ds_rest)
            # [BLOCK_M, BLOCK_N]
            e = exponent(l, l_square, x_columns, x_square, rate, PRECISION)
            if NORMALIZED:
                shift = tl.load(shift_ptr + at, mask=inside, other=0.0)
                e = tl.where(real[:, None], e - shift[None, :], float("-inf"))
            p = tl.exp2(e)
            if PADDED or ONES:
                p = tl.where(valid[None, :], p, 0.0)
            p_first, p_second, _ = split(p, DTYPE, True)
            if KEYS and WRITE_TOKENS:
                dv = add_dot(
                    dv, ds_unit, ds_columns, ds_rest_columns, p_first, p_second,
                    PIECES, PIECES, PRECISION,
                )  # fmt: skip
                if HOLDS_ONE:
                    # At once: it occupies registers.
                    dv_rows = tl.trans(dv)
                    if DIAGONAL:
                        # The exact diagonal gives a token its own share.
                        c = tl.load(diagonal_ptr + at, mask=inside, other=0.0)
                        dv_rows += (c * share)[:, None] * g.to(tl.float32)
                    store_rows(dv_ptr + first * D_V, token, D_V, dv_rows, inside, D_V, BLOCK_V)
            dp = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            if DIAGONAL:
                if ONE_BLOCK:
                    heard = middle_unit * dot(
                        middle, middle_rest, p_first, p_second, PIECES, PIECES, PRECISION
                    )
                else:
                    heard = through_middle(
                        x_columns, x_square, l_ptr, l_row, middle_ptr, middle_rest_ptr,
                        middle_unit, center_ptr, rows, m, rate,
                        D, BLOCK_M, BLOCK_D, CENTERED, PRECISION,
                    )  # fmt: skip
                dc = tl.load(dc_ptr + at, mask=inside, other=0.0)
                dp = -(dc / share)[None, :] * heard
            if QUERIES:
                g_columns = tl.trans(g)
                dp = add_dot(dp, w_unit, w, w_rest, g_columns, g_columns, W_PIECES, 1, PRECISION)
                if QUOTIENT:
                    dp = share[None, :] * dp
                    dp += tl.load(dd_ptr + at, mask=inside, other=0.0)[None, :] * z[:, None]
                if NORMALIZED:
                    dp += tl.load(dd_ptr + at, mask=valid, other=0.0)[None, :]
            if KEYS:
                v_columns = tl.trans(v)
                dp = add_dot(dp, ds_unit, ds, ds_rest, v_columns, v_columns, PIECES, 1, PRECISION)
                if ONES:
                    dp += du[:, None]
            slope = -scale * p * dp
            slope_first, slope_second, slope_unit = split(slope, DTYPE, False)
            if WRITE_TOKENS:
                pull = slope_unit * dot(
                    l_columns, l_columns, slope_first, slope_second, 1, PIECES, PRECISION
                )
                dx += tl.sum(slope, 0)[None, :] * x_columns.to(tl.float32) - pull
            if WRITE_LANDMARKS:
                slopes += tl.sum(slope, 1)
                pushes += slope_unit * dot(slope_first, slope_second, x, x, PIECES, 1, PRECISION)
        if WRITE_TOKENS:
            store_rows(dx_ptr + first * D, token, D, tl.trans(dx), inside, D, BLOCK_D)
            if KEYS and not HOLDS_ONE:
                dv_rows = tl.trans(dv)
                if DIAGONAL:
                    # The exact diagonal gives a token its own share.
                    c = tl.load(diagonal_ptr + at, mask=inside, other=0.0)
                    dv_rows += (c * share)[:, None] * g.to(tl.float32)
                store_rows(dv_ptr + first * D_V, token, D_V, dv_rows, inside, D_V, BLOCK_V)
    if WRITE_LANDMARKS:
        dl = slopes[:, None] * l.to(tl.float32) - pushes
        dl_ptr += (unit * m + own) * D
        store_rows(dl_ptr, landmark, D, dl, rows < m, D, BLOCK_D)
