"""O = K(X, L) W: sums over all landmarks, or over all keys, one for each token."""

from typing import NamedTuple

import torch
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
    through_middle,
    without_padding,
)
from softattn.kernels.launching import CHANGING, empty_rows, padding_argument, rows_argument
from softattn.kernels.pieces import (
    Pieces,
    Weights,
    middle_arguments,
    weights_arguments,
    weights_in_pieces,
)
from softattn.kernels.token_pass import TokenPass


class Diagonal(NamedTuple):
    """What the exact diagonal of self-attention is computed from.

    values: V, (batch, heads, n, d_v).
    middle: M, (batch, heads, m, m), float32 or in pieces, so that c_i = 1 − P_i M P_iᵀ, kept
        within 0 and 1.
    key_weights: w, (batch, heads, n), float32; None is 1.
    """

    values: Tensor
    middle: Tensor | Pieces
    key_weights: Tensor | None = None


class TokenOutput(NamedTuple):
    """The output (batch, heads, n, d_v), stored as the tokens are, and what its gradient needs.

    denominator: of the quotient, (batch, heads, n), its last bit 1 at the floor; None without one.
    diagonal: c, likewise; None without one.
    row_shift: log₂ of what each row of P was divided by, likewise; None where it was not.
    """

    output: Tensor
    denominator: Tensor | None = None
    diagonal: Tensor | None = None
    row_shift: Tensor | None = None


def landmarks_to_tokens(
    tokens: Tensor,
    landmarks: Tensor,
    weights: Tensor | Weights,
    *,
    rate: float,
    dtype: torch.dtype,
    center: Tensor | None = None,
    padding: Tensor | None = None,
    landmark_padding: Tensor | None = None,
    floor: float | None = None,
    underflow: float = 0.0,
    diagonal: Diagonal | None = None,
    normalize: bool = False,
) -> TokenOutput:
    """O = P W with P_ij = 2^(−rate ‖x_i − l_j‖²), and three quotients of it.

    - ``floor``: the last column of W is z, and O_i = P_i W / D̃_i, where D̃_i has the sign of
      D_i = P_i z and the magnitude max(|D_i|, floor · T_i) with T_i = P_i |z|;
    - ``floor`` and ``diagonal``: c_i w_i v_i is added to the numerator, and c_i w_i to D_i and
      T_i;
    - ``normalize``: O_i = P_i W / P_i 1.

    The first and the last divide each row of P by its largest entry, so that no row underflows.

    Args:
        tokens: X, (batch, heads, n, d).
        landmarks: L, (batch, heads, m, d); in exact attention the keys.
        weights: W, and z, in pieces; or whole, (batch, heads, m, d_v), or d_v + 1 columns with z,
            in float32 or the dtype of the tokens.
        rate: s log₂(e) / 2.
        dtype: of the output.
        center: (batch, heads, d), subtracted from tokens and landmarks.
        padding: (batch, n), True at padded tokens, which are ignored; their output is 0.
        landmark_padding: (batch, m), True at padded landmarks, which are ignored.
        floor: see above.
        underflow: where the absolute terms of a denominator sum to this at most, the output is 0.
        diagonal: see above.
        normalize: see above.
    """
    has_quotient = floor is not None
    if isinstance(weights, Tensor):
        weights = weights_in_pieces(weights, weights.shape[3] - has_quotient, tokens.dtype)
    d_v = weights.pieces.first.shape[3]
    values, middle, key_weights = diagonal or (None, None, None)
    tiles = TokenPass(
        "landmarks_to_tokens" if diagonal is None else "landmarks_to_tokens_diagonal",
        tokens,
        landmarks,
        d_v,
        rate=rate,
        center=center,
        padding=padding,
    )
    result = TokenOutput(
        output=empty_rows(d_v, tokens, dtype),
        denominator=tiles.empty(tiles.n) if has_quotient else None,
        diagonal=None if diagonal is None else tiles.empty(tiles.n),
        row_shift=tiles.empty(tiles.n) if normalize or (has_quotient and not diagonal) else None,
    )
    tiles.launch(
        _landmarks_to_tokens,
        tiles.stretches(),
        **weights_arguments("w", "z", weights, d_v, tokens.dtype),
        **rows_argument("v", values),
        **middle_arguments(middle, tokens.dtype),
        key_weight_ptr=key_weights,
        l_padding_ptr=padding_argument(landmark_padding),
        **rows_argument("o", result.output),
        denominator_ptr=result.denominator,
        diagonal_ptr=result.diagonal,
        shift_ptr=result.row_shift,
        floor=floor or 0.0,
        underflow=underflow,
        ONE_BLOCK=tiles.blocks == 1,
    )
    return result


@triton.jit(do_not_specialize=CHANGING)
def _landmarks_to_tokens(
    # tokens and landmarks
    x_ptr, x_batch, x_head, x_row: tl.constexpr,
    l_ptr, l_batch, l_head, l_row: tl.constexpr,
    center_ptr, padding_ptr, l_padding_ptr,
    # W, and z of a quotient
    w_ptr, w_rest_ptr, w_unit_ptr, w_batch, w_head, w_row: tl.constexpr, z_ptr,
    # V, M and the keys' weights of the diagonal
    v_ptr, v_batch, v_head, v_row: tl.constexpr,
    middle_ptr, middle_rest_ptr, middle_unit_ptr, key_weight_ptr,
    # outputs
    o_ptr, o_batch, o_head, o_row: tl.constexpr, denominator_ptr, diagonal_ptr, shift_ptr,
    # sizes
    n, m, heads, stretches, length, rate, floor, underflow,
    D: tl.constexpr, D_V: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    ONE_BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o_i = Σ_j P_ij w_j over one stretch of tokens, one block of landmarks after the other.

    With z it is divided by Σ_j P_ij z_j, after the diagonal's c_i w_i v_i and c_i w_i. With a shift
    rows of P are divided by their largest entries, and without z o_i is divided by Σ_j P_ij.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    PIECES: tl.constexpr = 1 if DTYPE == tl.float32 else 2
    W_PIECES: tl.constexpr = 1 if w_rest_ptr is None else 2
    QUOTIENT: tl.constexpr = z_ptr is not None
    DIAGONAL: tl.constexpr = middle_ptr is not None
    SHIFTED: tl.constexpr = shift_ptr is not None
    NORMALIZE: tl.constexpr = SHIFTED and not QUOTIENT
    unit, pair, batch, head, _number = pair_of_program(heads, stretches, 1)
    x_ptr += batch * x_batch + head * x_head
    l_ptr += batch * l_batch + head * l_head
    w_ptr += batch * w_batch + head * w_head
    if W_PIECES == 2:
        w_rest_ptr += batch * w_batch + head * w_head
    w_unit = load_unit(w_unit_ptr, pair)
    if QUOTIENT:
        z_ptr += pair * m
    o_ptr += batch * o_batch + head * o_head
    if center_ptr is not None:
        center_ptr += pair * D
    if padding_ptr is not None:
        padding_ptr += batch * n
    if l_padding_ptr is not None:
        l_padding_ptr += batch * m
    if DIAGONAL:
        v_ptr += batch * v_batch + head * v_head
        middle_ptr += pair * m * m
        if PIECES == 2:
            middle_rest_ptr += pair * m * m
        middle_unit = load_unit(middle_unit_ptr, pair)

    landmark = tl.arange(0, BLOCK_M)
    if ONE_BLOCK:
        # [BLOCK_M, BLOCK_D], [BLOCK_M], [BLOCK_M]
        l, l_square, real = load_landmarks(
            l_ptr, 0, landmark, l_row, landmark < m, l_padding_ptr, center_ptr, D, BLOCK_D
        )
        l_columns = tl.trans(l)
        # [BLOCK_M, BLOCK_V] twice, [BLOCK_M]
        w, w_rest, z = load_weights(
            w_ptr, w_rest_ptr, z_ptr, 0, landmark, w_row, real, D_V, BLOCK_V
        )
        if DIAGONAL:
            # [BLOCK_M, BLOCK_M] twice
            middle, middle_rest = load_middle(middle_ptr, middle_rest_ptr, landmark, landmark, m)
    token = tl.arange(0, BLOCK_N)
    begin, end = stretch_of_program(unit, stretches, length, n)
    for first in range(begin, end, BLOCK_N):
        inside = token < n - first
        valid = without_padding(padding_ptr, first, token, inside)
        # [BLOCK_N, BLOCK_D], [BLOCK_N]
        x, x_square = load_points(x_ptr, first, token, x_row, valid, center_ptr, D, BLOCK_D)
        o = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
        denominator = tl.zeros([BLOCK_N], tl.float32)
        terms = tl.zeros([BLOCK_N], tl.float32)
        form = tl.zeros([BLOCK_N], tl.float32)
        top = tl.full([BLOCK_N], float("-inf"), tl.float32)
        for block in range(0, BLOCK_M if ONE_BLOCK else m, BLOCK_M):
            if not ONE_BLOCK:
                inside_m = landmark < m - block
                l, l_square, real = load_landmarks(
                    l_ptr, block, landmark, l_row, inside_m, l_padding_ptr, center_ptr, D, BLOCK_D
                )
                l_columns = tl.trans(l)
                w, w_rest, z = load_weights(
                    w_ptr, w_rest_ptr, z_ptr, block, landmark, w_row, real, D_V, BLOCK_V
                )
            # [BLOCK_N, BLOCK_M]
            e = exponent(x, x_square, l_columns, l_square, rate, PRECISION)
            if SHIFTED:
                e, fade, top = _below_top(tl.where(real[None, :], e, float("-inf")), top)
                if not ONE_BLOCK:
                    o *= fade[:, None]
                    denominator *= fade
                    terms *= fade
            p = tl.exp2(e)
            p_first, p_rest, _ = split(p, DTYPE, True)
            if NORMALIZE:
                denominator += tl.sum(p, 1)
            if QUOTIENT:
                weighted = p * z[None, :]
                denominator += tl.sum(weighted, 1)
                terms += tl.sum(tl.abs(weighted), 1)
            if DIAGONAL:
                if ONE_BLOCK:
                    p_middle = middle_unit * dot(
                        p_first, p_rest, middle, middle_rest, PIECES, PIECES, PRECISION
                    )
                else:
                    p_middle = tl.trans(
                        through_middle(
                            tl.trans(x), x_square, l_ptr, l_row, middle_ptr, middle_rest_ptr,
                            middle_unit, center_ptr, block + landmark, m, rate,
                            D, BLOCK_M, BLOCK_D, PRECISION,
                        )
                    )  # fmt: skip
                form += tl.sum(p_middle * p, 1)
            o = add_dot(o, w_unit, p_first, p_rest, w, w_rest, PIECES, W_PIECES, PRECISION)
        at = pair * n + first + token
        if DIAGONAL:
            # 0 to 1 but for rounding, which must not grow where tokens are far apart.
            c = tl.minimum(tl.maximum(1 - form, 0.0), 1.0)
            tl.store(diagonal_ptr + at, c, mask=inside)
            if key_weight_ptr is not None:
                c *= tl.load(key_weight_ptr + at, mask=valid, other=0.0)
            v = load_rows(v_ptr, first, token, v_row, valid, D_V, BLOCK_V)
            o += c[:, None] * v.to(tl.float32)
            denominator += c
            terms += c
        if QUOTIENT:
            share = floored_share(
                denominator, terms, floor, underflow, denominator_ptr + at, inside
            )
            o *= share[:, None]
        top = _finite(top)
        if NORMALIZE:
            denominator = tl.where(denominator == 0, 1.0, denominator)
            top += tl.log2(denominator)
            o *= (1 / denominator)[:, None]
        if SHIFTED:
            tl.store(shift_ptr + at, top, mask=inside)
        if padding_ptr is not None:
            o = tl.where(valid[:, None], o, 0.0)
        store_rows(o_ptr, first, token, o_row, o, inside, D_V, BLOCK_V)


@triton.jit
def _below_top(e, top):
    """The exponents less the largest of each row so far, the factor of older sums, the largest."""
    higher = tl.maximum(top, tl.max(e, 1))
    shift = _finite(higher)
    return e - shift[:, None], tl.exp2(top - shift), higher


@triton.jit
def _finite(top):
    """The largest exponent of a row, 0 for a row that has met nothing but padding."""
    return tl.where(top == float("-inf"), 0.0, top)
