"""W = M S between the passes: partial sums are added, multiplied by M and cut into pieces."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from softattn.kernels import configurations, devices, launching
from softattn.kernels.arithmetic import load_square, load_transposed, store_rows
from softattn.kernels.launching import CHANGING, block_of
from softattn.kernels.pieces import Pieces, Weights

# The most landmarks, and features of values, that one program holds.
_MOST = max(configurations.FLOAT32["landmark_weights"])


def fit_landmark_weights(m: int, d_v: int) -> bool:
    """Whether the functions below take so many landmarks and features of values."""
    return max(m, d_v) <= _MOST and m > 0


class LandmarkWeights(NamedTuple):
    """What ``landmark_weights`` computes.

    sums: S, (batch, heads, m, columns), float32.
    weights: W = M S in pieces, with z beside it if S has a column u.
    middle: M or M + Mᵀ in pieces; None where it was not asked for.
    """

    sums: Tensor
    weights: Weights
    middle: Pieces | None


def landmark_weights(
    partial: Tensor,
    middle: Tensor,
    d_v: int,
    dtype: torch.dtype,
    *,
    with_middle: bool = False,
    with_symmetric_middle: bool = False,
) -> LandmarkWeights:
    """S = Σ_stretches, W = M S and z = M u, with W and M cut into pieces of ``dtype``.

    Args:
        partial: sums over each stretch of tokens, (batch, heads, stretches, m, d_v), or d_v + 1
            columns with u; float32. See ``fit_landmark_weights``.
        middle: M, (batch, heads, m, m), float32.
        d_v: features of values.
        dtype: of the pieces.
        with_middle: whether to cut M.
        with_symmetric_middle: whether to cut M + Mᵀ.
    """
    batch, heads, stretches, m, columns = partial.shape
    device = devices.device_of(partial.device)
    chosen = configurations.choose("landmark_weights", m, d_v, m, dtype, device)
    halves = dtype != torch.float32
    cuts_middle = with_symmetric_middle or (with_middle and halves)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty((batch, heads, *shape), device=partial.device, dtype=dtype)

    def pieces(rows: int, columns: int) -> Pieces:
        return Pieces(
            first=empty(rows, columns, dtype=dtype),
            rest=empty(rows, columns, dtype=dtype) if halves else None,
            unit=empty() if dtype == torch.float16 else None,
        )

    sums = empty(m, columns)
    weights = Weights(pieces(m, d_v), empty(m) if columns > d_v else None)
    of_middle = pieces(m, m) if cuts_middle else None
    launching.launch(
        _landmark_weights,
        (batch * heads,),
        dict(
            partial_ptr=partial,
            middle_ptr=middle,
            sums_ptr=sums,
            w_ptr=weights.pieces.first,
            w_rest_ptr=weights.pieces.rest,
            w_unit_ptr=weights.pieces.unit,
            z_ptr=weights.column,
            m_first_ptr=of_middle and of_middle.first,
            m_rest_ptr=of_middle and of_middle.rest,
            m_unit_ptr=of_middle and of_middle.unit,
            m=m,
            stretches=stretches,
            D_V=d_v,
            BLOCK_M=block_of(m),
            BLOCK_V=block_of(d_v),
            TILE=min(chosen.tokens, block_of(m)),
            SYMMETRIC=with_symmetric_middle,
            PRECISION=device.precision,
        ),
        chosen,
    )
    if with_middle and of_middle is None:
        of_middle = Pieces(middle)
    return LandmarkWeights(sums, weights, of_middle)


class LandmarkWeightsGradient(NamedTuple):
    """What ``landmark_weights_gradient`` computes.

    sums: dS = Mᵀ dW in pieces, with du beside it if there is one.
    middle: dM, (batch, heads, m, m), float32.
    """

    sums: Weights
    middle: Tensor


def landmark_weights_gradient(
    partial: Tensor,
    partial_middle: Tensor | None,
    middle: Tensor,
    sums: Tensor,
    d_v: int,
    dtype: torch.dtype,
) -> LandmarkWeightsGradient:
    """dS = Mᵀ dW, du = Mᵀ dz and dM = dW Sᵀ + dz uᵀ − Pᵀ diag(dc) P.

    Args:
        partial: dW of each stretch of tokens, (batch, heads, stretches, m, d_v), or d_v + 1 columns
            with dz; float32.
        partial_middle: Pᵀ diag(dc) P of each stretch, (batch, heads, stretches, m, m), or None.
        middle: M, (batch, heads, m, m), float32.
        sums: S, (batch, heads, m, columns), float32.
        d_v: features of values.
        dtype: of the pieces.
    """
    batch, heads, stretches, m, columns = partial.shape
    device = devices.device_of(partial.device)
    chosen = configurations.choose("landmark_weights", m, d_v, m, dtype, device)
    halves = dtype != torch.float32

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty((batch, heads, *shape), device=partial.device, dtype=dtype)

    grad_sums = Weights(
        Pieces(
            first=empty(m, d_v, dtype=dtype),
            rest=empty(m, d_v, dtype=dtype) if halves else None,
            unit=empty() if dtype == torch.float16 else None,
        ),
        empty(m) if columns > d_v else None,
    )
    grad_middle = empty(m, m)
    launching.launch(
        _landmark_weights_gradient,
        (batch * heads,),
        dict(
            partial_ptr=partial,
            partial_middle_ptr=partial_middle,
            middle_ptr=middle,
            sums_ptr=sums,
            ds_ptr=grad_sums.pieces.first,
            ds_rest_ptr=grad_sums.pieces.rest,
            ds_unit_ptr=grad_sums.pieces.unit,
            du_ptr=grad_sums.column,
            dm_ptr=grad_middle,
            m=m,
            stretches=stretches,
            stretches_of_middle=0 if partial_middle is None else partial_middle.shape[2],
            D_V=d_v,
            BLOCK_M=block_of(m),
            BLOCK_V=block_of(d_v),
            TILE=min(chosen.tokens, block_of(m)),
            PRECISION=device.precision,
        ),
        chosen,
    )
    return LandmarkWeightsGradient(grad_sums, grad_middle)


@triton.jit(do_not_specialize=CHANGING)
def _landmark_weights(
    # sums of each stretch, and M
    partial_ptr, middle_ptr,
    # S, the pieces of W and of M, and z
    sums_ptr, w_ptr, w_rest_ptr, w_unit_ptr, z_ptr, m_first_ptr, m_rest_ptr, m_unit_ptr,
    # sizes
    m, stretches, D_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
    TILE: tl.constexpr, SYMMETRIC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """W = Σ_k M_k S_k for one pair, with k a tile of landmarks."""
    DTYPE: tl.constexpr = w_ptr.dtype.element_ty
    COLUMNS: tl.constexpr = D_V if z_ptr is None else D_V + 1
    pair = tl.program_id(0).to(tl.int64)
    partial_ptr += pair * stretches * m * COLUMNS
    sums_ptr += pair * m * COLUMNS
    middle_ptr += pair * m * m
    row = tl.arange(0, BLOCK_M)
    part = tl.arange(0, TILE)
    w = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    z = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, m, TILE):
        k = first + part
        # [TILE, BLOCK_V], [TILE]
        s = _sum_of_stretches(partial_ptr, k, stretches, m, D_V, COLUMNS, BLOCK_V)
        store_rows(sums_ptr, 0, k, COLUMNS, s, k < m, D_V, BLOCK_V)
        # [BLOCK_M, TILE]
        middle = load_square(middle_ptr, row, k, m)
        w += tl.dot(middle, s, input_precision=PRECISION)
        if z_ptr is not None:
            u = _sum_of_column(partial_ptr, k, stretches, m, D_V, COLUMNS)
            tl.store(sums_ptr + k * COLUMNS + D_V, u, mask=k < m)
            z += tl.sum(middle * u[None, :], 1)
    _store_pieces(w_ptr, w_rest_ptr, w_unit_ptr, pair, row, w, m, DTYPE, D_V, BLOCK_V)
    if z_ptr is not None:
        tl.store(z_ptr + pair * m + row, z, mask=row < m)
    if m_first_ptr is not None:
        unit = 1.0
        if DTYPE == tl.float16:
            largest = 0.0
            for first in range(0, m, TILE):
                middle = _load_middle(middle_ptr, row, first + part, m, SYMMETRIC)
                largest = tl.maximum(largest, tl.max(tl.abs(middle)))
            unit = tl.where(largest > 0, largest, 1.0)
            tl.store(m_unit_ptr + pair, unit)
        for first in range(0, m, TILE):
            k = first + part
            middle = _load_middle(middle_ptr, row, k, m, SYMMETRIC) / unit
            mask = (row < m)[:, None] & (k < m)[None, :]
            to = pair * m * m + row[:, None] * m + k[None, :]
            piece = middle.to(DTYPE)
            tl.store(m_first_ptr + to, piece, mask=mask)
            if m_rest_ptr is not None:
                tl.store(m_rest_ptr + to, (middle - piece.to(tl.float32)).to(DTYPE), mask=mask)


@triton.jit(do_not_specialize=CHANGING)
def _landmark_weights_gradient(
    # dW and Pᵀ diag(dc) P of each stretch, M and S
    partial_ptr, partial_middle_ptr, middle_ptr, sums_ptr,
    # the pieces of dS, du and dM
    ds_ptr, ds_rest_ptr, ds_unit_ptr, du_ptr, dm_ptr,
    # sizes
    m, stretches, stretches_of_middle,
    D_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
    TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dS = Σ_k (M_k)ᵀ dW_k for one pair, with k a tile of landmarks, and rows k of dM."""
    DTYPE: tl.constexpr = ds_ptr.dtype.element_ty
    COLUMNS: tl.constexpr = D_V if du_ptr is None else D_V + 1
    pair = tl.program_id(0).to(tl.int64)
    partial_ptr += pair * stretches * m * COLUMNS
    sums_ptr += pair * m * COLUMNS
    middle_ptr += pair * m * m
    dm_ptr += pair * m * m
    if partial_middle_ptr is not None:
        partial_middle_ptr += pair * stretches_of_middle * m * m
    row = tl.arange(0, BLOCK_M)
    part = tl.arange(0, TILE)
    column = tl.arange(0, BLOCK_V)
    ds = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    du = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, m, TILE):
        k = first + part
        # [TILE, BLOCK_V], [TILE]
        dw = _sum_of_stretches(partial_ptr, k, stretches, m, D_V, COLUMNS, BLOCK_V)
        # [BLOCK_M, TILE]
        middle = load_transposed(middle_ptr, row, k, m)
        ds += tl.dot(middle, dw, input_precision=PRECISION)
        if du_ptr is not None:
            dz = _sum_of_column(partial_ptr, k, stretches, m, D_V, COLUMNS)
            du += tl.sum(middle * dz[None, :], 1)
        for other in range(0, m, TILE):
            j = other + part
            # Rows j of S, transposed: [BLOCK_V, TILE]
            s_mask = (column < D_V)[:, None] & (j < m)[None, :]
            s = tl.load(sums_ptr + column[:, None] + j[None, :] * COLUMNS, mask=s_mask, other=0.0)
            dm = tl.dot(dw, s, input_precision=PRECISION)
            if du_ptr is not None:
                u = tl.load(sums_ptr + j * COLUMNS + D_V, mask=j < m, other=0.0)
                dm += dz[:, None] * u[None, :]
            mask = (k < m)[:, None] & (j < m)[None, :]
            at = k[:, None] * m + j[None, :]
            if partial_middle_ptr is not None:
                for stretch in tl.range(0, stretches_of_middle, loop_unroll_factor=4):
                    dm -= tl.load(partial_middle_ptr + stretch * m * m + at, mask=mask, other=0.0)
            tl.store(dm_ptr + at, dm, mask=mask)
    _store_pieces(ds_ptr, ds_rest_ptr, ds_unit_ptr, pair, row, ds, m, DTYPE, D_V, BLOCK_V)
    if du_ptr is not None:
        tl.store(du_ptr + pair * m + row, du, mask=row < m)


@triton.jit
def _sum_of_stretches(
    ptr, rows, stretches, m, D_V: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_V: tl.constexpr
):
    """Some rows of the sum of all stretches, [rows, BLOCK_V], added in their order."""
    column = tl.arange(0, BLOCK_V)
    at = ptr + rows[:, None] * COLUMNS + column[None, :]
    mask = (rows < m)[:, None] & (column < D_V)[None, :]
    total = tl.zeros([rows.shape[0], BLOCK_V], tl.float32)
    # Loads of several stretches are under way at once.
    for stretch in tl.range(0, stretches, loop_unroll_factor=4):
        total += tl.load(at + stretch * m * COLUMNS, mask=mask, other=0.0)
    return total


@triton.jit
def _sum_of_column(ptr, rows, stretches, m, D_V: tl.constexpr, COLUMNS: tl.constexpr):
    """The same of the last column, [rows]."""
    total = tl.zeros([rows.shape[0]], tl.float32)
    for stretch in tl.range(0, stretches, loop_unroll_factor=4):
        at = ptr + (stretch * m + rows) * COLUMNS + D_V
        total += tl.load(at, mask=rows < m, other=0.0)
    return total


@triton.jit
def _store_pieces(
    ptr, rest_ptr, unit_ptr, pair, row, tile, m,
    DTYPE: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Stores the rounded pieces of a factor (m, columns)."""
    if unit_ptr is not None:
        largest = tl.max(tl.abs(tile))
        unit = tl.where(largest > 0, largest, 1.0)
        tile = tile / unit
        tl.store(unit_ptr + pair, unit)
    first = tile.to(DTYPE)
    store_rows(ptr, pair * m, row, COLUMNS, first, row < m, COLUMNS, BLOCK)
    if rest_ptr is not None:
        rest = tile - first.to(tl.float32)
        store_rows(rest_ptr, pair * m, row, COLUMNS, rest, row < m, COLUMNS, BLOCK)


@triton.jit
def _load_middle(ptr, rows, columns, m, SYMMETRIC: tl.constexpr):
    """Some rows and columns of M, or of M + Mᵀ."""
    middle = load_square(ptr, rows, columns, m)
    if SYMMETRIC:
        middle += load_transposed(ptr, rows, columns, m)
    return middle
