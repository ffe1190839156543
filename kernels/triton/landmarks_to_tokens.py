"""O = K(X, L) W: what each token hears from all landmarks, or from all keys."""

from typing import NamedTuple

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


class Diagonal(NamedTuple):
    """What puts the exact diagonal of self-attention back.

    values: V, (batch, heads, n, d_v).
    middle: M, (batch, heads, m, m), float32, so that c_i = 1 − P_i M P_iᵀ, kept within 0 and 1.
    """

    values: Tensor
    middle: Tensor


class Heard(NamedTuple):
    """The output (batch, heads, n, d_v) and what its gradient needs, (batch, heads, n) each.

    denominator: of the quotient; None without one.
    diagonal: c; None without one.
    row_shift: log₂ of the row sums of P; None but for weights that sum to 1.
    """

    output: Tensor
    denominator: Tensor | None = None
    diagonal: Tensor | None = None
    row_shift: Tensor | None = None


def landmarks_to_tokens(
    tokens: Tensor,
    landmarks: Tensor,
    weights: Tensor,
    *,
    rate: float,
    dtype: torch.dtype,
    center: Tensor | None = None,
    padding: Tensor | None = None,
    landmark_padding: Tensor | None = None,
    floor: float | None = None,
    diagonal: Diagonal | None = None,
    normalize: bool = False,
) -> Heard:
    """O = P W with P_ij = 2^(−rate ‖x_i − l_j‖²), and three quotients of it.

    - ``floor``: the last column of W is z, and O_i = P_i W / max(P_i z, floor);
    - ``floor`` and ``diagonal``: O_i = (P_i W + c_i v_i) / max(P_i z + c_i, floor);
    - ``normalize``: O_i = P_i W / P_i 1, by way of the largest entry of each row, so that no row
      underflows.

    Args:
        tokens: X, (batch, heads, n, d).
        landmarks: L, (batch, heads, m, d); in exact attention the keys.
        weights: W, (batch, heads, m, d_v), or d_v + 1 columns with z; in float32 or the dtype of
            the tokens.
        rate: s log₂(e) / 2.
        dtype: of the output.
        center: (batch, heads, d), taken off tokens and landmarks.
        padding: (batch, n), True where a token answers 0 and is not to be read.
        landmark_padding: (batch, m), likewise for landmarks.
        floor: see above.
        diagonal: see above.
        normalize: see above.
    """
    tokens, landmarks = rows_of(tokens), rows_of(landmarks)
    batch, heads, n, d = tokens.shape
    m, d_v = landmarks.shape[2], weights.shape[3] - (floor is not None)
    of_weights = in_pieces(weights[..., :d_v], tokens.dtype)
    middle = None if diagonal is None else in_pieces(diagonal.middle.contiguous(), tokens.dtype)
    device = launching.device_of(tokens.device)
    variant = "landmarks_to_tokens" if diagonal is None else "landmarks_to_tokens_diagonal"
    chosen = configurations.choose(variant, d, d_v, m, tokens.dtype, device)
    number, length = stretches(n, chosen.tokens, batch * heads, device)
    output = torch.empty(batch, heads, n, d_v, device=tokens.device, dtype=dtype)
    per_token = [
        torch.empty(batch, heads, n, device=tokens.device) if wanted else None
        for wanted in (floor is not None, diagonal is not None, normalize)
    ]
    values = None if diagonal is None else rows_of(diagonal.values)
    launching.launch(
        _landmarks_to_tokens,
        (batch * heads * number,),
        tokens,
        landmarks,
        *of_weights,
        None if floor is None else weights[..., d_v].contiguous(),
        values,
        *(middle or (None,) * len(Pieces._fields)),
        center,
        padding_of(padding),
        padding_of(landmark_padding),
        output,
        *per_token,
        *strides_of(tokens),
        *strides_of(landmarks),
        *strides_of(of_weights.first),
        *strides_of(values),
        n,
        m,
        heads,
        number,
        length,
        rate,
        0.0 if floor is None else floor,
        D=d,
        D_V=d_v,
        ONE_BLOCK=m <= chosen.landmarks,
        BLOCK_N=chosen.tokens,
        BLOCK_M=chosen.landmarks,
        BLOCK_D=block_of(d),
        BLOCK_V=block_of(d_v),
        CENTERED=center is not None,
        PADDED=padding is not None,
        LANDMARKS_PADDED=landmark_padding is not None,
        W_PIECES=1 if of_weights.rest is None else 2,
        QUOTIENT=floor is not None,
        DIAGONAL=diagonal is not None,
        NORMALIZE=normalize,
        PRECISION=device.precision,
        warps=chosen.warps,
        stages=chosen.stages,
    )
    return Heard(output, *per_token)


@triton.jit
def _landmarks_to_tokens(
    x_ptr,
    l_ptr,
    w_ptr,
    w_rest_ptr,
    w_unit_ptr,
    z_ptr,
    v_ptr,
    middle_ptr,
    middle_rest_ptr,
    middle_unit_ptr,
    center_ptr,
    padding_ptr,
    l_padding_ptr,
    o_ptr,
    denominator_ptr,
    diagonal_ptr,
    shift_ptr,
    x_batch,
    x_head,
    x_row: tl.constexpr,
    l_batch,
    l_head,
    l_row: tl.constexpr,
    w_batch,
    w_head,
    w_row: tl.constexpr,
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
    LANDMARKS_PADDED: tl.constexpr,
    W_PIECES: tl.constexpr,
    QUOTIENT: tl.constexpr,
    DIAGONAL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """o_i = Σ_j P_ij w_j over one stretch of tokens, a block of landmarks after the other."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    PIECES: tl.constexpr = 1 if DTYPE == tl.float32 else 2
    unit = tl.program_id(0).to(tl.int64)
    pair = unit // stretches
    batch, head = pair // heads, pair % heads
    x_ptr += batch * x_batch + head * x_head
    l_ptr += batch * l_batch + head * l_head
    w_ptr += batch * w_batch + head * w_head
    if W_PIECES == 2:
        w_rest_ptr += batch * w_batch + head * w_head
    if QUOTIENT:
        z_ptr += pair * m
    o_ptr += pair * n * D_V
    if CENTERED:
        center_ptr += pair * D
    if PADDED:
        padding_ptr += batch * n
    if LANDMARKS_PADDED:
        l_padding_ptr += batch * m
    if DIAGONAL:
        v_ptr += batch * v_batch + head * v_head
        middle_ptr += pair * m * m
        middle_unit = 1.0
        if PIECES == 2:
            middle_rest_ptr += pair * m * m
            middle_unit = load_unit(middle_unit_ptr, pair, DTYPE)
    w_unit = 1.0
    if W_PIECES == 2:
        w_unit = load_unit(w_unit_ptr, pair, DTYPE)

    landmark = tl.arange(0, BLOCK_M)
    if ONE_BLOCK:
        real = without_padding(l_padding_ptr, 0, landmark, landmark < m, LANDMARKS_PADDED)
        # [BLOCK_M, BLOCK_D], [BLOCK_M]
        l, l_square = load_points(l_ptr, landmark, l_row, real, center_ptr, D, BLOCK_D, CENTERED)
        l_columns = tl.trans(l)
        # [BLOCK_M, BLOCK_V], [BLOCK_M]
        w, w_rest = load_pieces(w_ptr, w_rest_ptr, 0, landmark, w_row, real, D_V, BLOCK_V, W_PIECES)
        if QUOTIENT:
            z = tl.load(z_ptr + landmark, mask=real, other=0.0)
        if DIAGONAL:
            # [BLOCK_M, BLOCK_M]
            middle, middle_rest = load_middle(
                middle_ptr, middle_rest_ptr, landmark, landmark, m, PIECES
            )
    token = tl.arange(0, BLOCK_N)
    start = unit % stretches * length
    for first in range(start, tl.minimum(start + length, n), BLOCK_N):
        inside = token < n - first
        valid = without_padding(padding_ptr, first, token, inside, PADDED)
        # [BLOCK_N, BLOCK_D], [BLOCK_N]
        x, x_square = load_points(
            x_ptr + first * x_row, token, x_row, valid, center_ptr, D, BLOCK_D, CENTERED
        )
        o = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
        denominator = tl.zeros([BLOCK_N], tl.float32)
        form = tl.zeros([BLOCK_N], tl.float32)
        top = tl.full([BLOCK_N], float("-inf"), tl.float32)
        for block in range(0, BLOCK_M if ONE_BLOCK else m, BLOCK_M):
            if not ONE_BLOCK:
                real = landmark < m - block
                real = without_padding(l_padding_ptr, block, landmark, real, LANDMARKS_PADDED)
                l, l_square = load_points(
                    l_ptr + tl.cast(block, tl.int64) * l_row,
                    landmark, l_row, real, center_ptr, D, BLOCK_D, CENTERED,
                )  # fmt: skip
                l_columns = tl.trans(l)
                w, w_rest = load_pieces(
                    w_ptr, w_rest_ptr, block, landmark, w_row, real, D_V, BLOCK_V, W_PIECES
                )
                if QUOTIENT:
                    z = tl.load(z_ptr + block + landmark, mask=real, other=0.0)
            # [BLOCK_N, BLOCK_M]
            e = exponent(x, x_square, l_columns, l_square, rate, PRECISION)
            if NORMALIZE:
                e = tl.where(real[None, :], e, float("-inf"))
                higher = tl.maximum(top, tl.max(e, 1))
                # A row that has met nothing but padding keeps a finite shift.
                shift = tl.where(higher == float("-inf"), 0.0, higher)
                fade = tl.exp2(top - shift)
                o *= fade[:, None]
                denominator *= fade
                e -= shift[:, None]
                top = higher
            p = tl.exp2(e)
            p_first, p_second, _ = split(p, DTYPE, True)
            if NORMALIZE:
                denominator += tl.sum(p, 1)
            if QUOTIENT:
                denominator += tl.sum(p * z[None, :], 1)
            if DIAGONAL:
                if ONE_BLOCK:
                    heard = middle_unit * dot(
                        p_first, p_second, middle, middle_rest, PIECES, PIECES, PRECISION
                    )
                else:
                    heard = tl.trans(
                        through_middle(
                            tl.trans(x), x_square, l_ptr, l_row, middle_ptr, middle_rest_ptr,
                            middle_unit, center_ptr, block + landmark, m, rate,
                            D, BLOCK_M, BLOCK_D, CENTERED, PRECISION,
                        )
                    )  # fmt: skip
                form += tl.sum(heard * p, 1)
            o = add_dot(o, w_unit, p_first, p_second, w, w_rest, PIECES, W_PIECES, PRECISION)
        at = pair * n + first + token
        if DIAGONAL:
            # 0 to 1 but for rounding, which must not grow where tokens are far apart.
            c = tl.minimum(tl.maximum(1 - form, 0.0), 1.0)
            v = load_rows(v_ptr + first * v_row, token, v_row, valid, D_V, BLOCK_V)
            o += c[:, None] * v.to(tl.float32)
            denominator += c
            tl.store(diagonal_ptr + at, c, mask=inside)
        if QUOTIENT:
            denominator = tl.maximum(denominator, floor, propagate_nan=tl.PropagateNan.ALL)
            tl.store(denominator_ptr + at, denominator, mask=inside)
            o *= (1 / denominator)[:, None]
        if NORMALIZE:
            denominator = tl.where(denominator == 0, 1.0, denominator)
            shift = tl.where(top == float("-inf"), 0.0, top) + tl.log2(denominator)
            tl.store(shift_ptr + at, shift, mask=inside)
            o *= (1 / denominator)[:, None]
        if PADDED:
            o = tl.where(valid[:, None], o, 0.0)
        store_rows(o_ptr + first * D_V, token, D_V, o, inside, D_V, BLOCK_V)
