"""M between the landmarks: Gram block, ridge, inverse and D^-½, in one launch."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from softattn.kernels import configurations, devices, launching
from softattn.kernels.arithmetic import load_rows, load_square, load_transposed, store_rows
from softattn.kernels.launching import CHANGING, block_of, padding_argument, rows_argument

# The most landmarks that the table of tiles provides for.
MOST_LANDMARKS = max(configurations.FLOAT32["middle_factor"])


class MiddleFactor(NamedTuple):
    """What ``middle_factor`` computes.

    landmarks: L, contiguous, with padded ones moved to the mean of the others.
    middle: M, (batch, heads, m, m), float32.
    gram: A, likewise, with rows and columns of the identity for padded landmarks.
    """

    landmarks: Tensor
    middle: Tensor
    gram: Tensor


def middle_factor(
    landmarks: Tensor,
    *,
    rate: float,
    ridge: float,
    normalized: bool,
    padding: Tensor | None = None,
) -> MiddleFactor:
    """M = (A + ε I)⁻¹ with A_ij = 2^(−rate ‖l_i − l_j‖²), or D^-½ (A + ε I)⁻¹ D^-½, D = diag(A 1).

    Args:
        landmarks: L, (batch, heads, m, d), m up to ``MOST_LANDMARKS``.
        rate: s log₂(e) / 2.
        ridge: ε, well above the rounding of A.
        normalized: whether to multiply by D^-½.
        padding: (batch, m), True at padded landmarks: their rows and columns of M are 0.
    """
    batch, heads, m, d = landmarks.shape
    device = devices.device_of(landmarks.device)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, device=landmarks.device, dtype=dtype)

    result = MiddleFactor(
        landmarks=empty(batch, heads, m, d, dtype=landmarks.dtype),
        middle=empty(batch, heads, m, m),
        gram=empty(batch, heads, m, m),
    )
    launching.launch(
        _middle_factor,
        (batch * heads,),
        dict(
            **rows_argument("l", landmarks),
            padding_ptr=padding_argument(padding),
            moved_ptr=result.landmarks,
            gram_ptr=result.gram,
            middle_ptr=result.middle,
            m=m,
            heads=heads,
            rate=rate,
            ridge=ridge,
            D=d,
            BLOCK=block_of(m),
            BLOCK_D=block_of(d),
            NORMALIZED=normalized,
        ),
        configurations.choose("middle_factor", m, m, m, torch.float32, device),
    )
    return result


def middle_factor_gradient(
    landmarks: Tensor,
    middle: Tensor,
    gram: Tensor,
    grad: Tensor,
    grad_landmarks: Tensor | None,
    *,
    scale: float,
    normalized: bool,
    padding: Tensor | None = None,
) -> Tensor:
    """dL from the gradients of M and of the landmarks that ``middle_factor`` returned.

    With E = dM + dMᵀ and the symmetric M, the gradient of the inverse is dA + dAᵀ = −M E M. For
    ``normalized`` it is −D^½ M E M D^½, and δ_i + δ_j is added, δ_i = −½ Σ_j E_ij M_ij / D_i. Then
    H = −s A ∘ (dA + dAᵀ) and dL = rowsum(H) L − H L.

    Args:
        landmarks: L as ``middle_factor`` returned it.
        middle: M, likewise.
        gram: A, likewise.
        grad: dM, (batch, heads, m, m), float32.
        grad_landmarks: (batch, heads, m, d), which is added to dL; None is 0.
        scale: s.
        normalized: as in ``middle_factor``.
        padding: likewise; the gradient of padded landmarks is 0.

    Returns:
        dL, (batch, heads, m, d), in the dtype of the landmarks.
    """
    batch, heads, m, d = landmarks.shape
    device = devices.device_of(landmarks.device)
    chosen = configurations.choose("middle_factor_gradient", max(m, d), m, m, torch.float32, device)
    result = torch.empty((batch, heads, m, d), device=landmarks.device, dtype=landmarks.dtype)
    sums = gram.new_empty((batch, heads, 2, m)) if normalized else None
    launching.launch(
        _middle_factor_gradient,
        (batch * heads,),
        dict(
            **rows_argument("l", landmarks),
            **rows_argument("dmoved", grad_landmarks),
            padding_ptr=padding_argument(padding),
            middle_ptr=middle,
            gram_ptr=gram,
            dm_ptr=grad.contiguous(),
            sums_ptr=sums,
            dl_ptr=result,
            m=m,
            heads=heads,
            scale=scale,
            D=d,
            BLOCK=block_of(m),
            BLOCK_D=block_of(d),
            TILE=min(chosen.tokens, block_of(m)),
            PRECISION=device.precision,
        ),
        chosen,
    )
    return result


@triton.jit(do_not_specialize=CHANGING)
def _middle_factor(
    l_ptr, l_batch, l_head, l_row, padding_ptr,
    # outputs
    moved_ptr, gram_ptr, middle_ptr,
    # sizes
    m, heads, rate, ridge,
    D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, NORMALIZED: tl.constexpr,
):  # fmt: skip
    """M of one pair, which stays in registers until it is inverted."""
    pair = tl.program_id(0).to(tl.int64)
    batch = pair // heads
    l_ptr += batch * l_batch + pair % heads * l_head
    landmark = tl.arange(0, BLOCK)
    real = _real(padding_ptr, batch, landmark, m)
    # [BLOCK, BLOCK_D]
    l = load_rows(l_ptr, 0, landmark, l_row, real, D, BLOCK_D)
    if padding_ptr is not None:
        number = tl.maximum(tl.sum(real.to(tl.float32), 0), 1.0)
        mean = (tl.sum(l.to(tl.float32), 0) / number).to(l.dtype)
        l = tl.where(real[:, None], l, mean[None, :])
    store_rows(moved_ptr, pair * m, landmark, D, l, landmark < m, D, BLOCK_D)

    # [BLOCK, BLOCK]
    distance = tl.zeros([BLOCK, BLOCK], tl.float32)
    row, column = landmark[:, None], landmark[None, :]
    for feature in range(D):
        x = tl.load(l_ptr + row * l_row + feature, mask=real[:, None], other=0.0)
        y = tl.load(l_ptr + column * l_row + feature, mask=real[None, :], other=0.0)
        difference = x.to(tl.float32) - y.to(tl.float32)
        distance += difference * difference
    # Padding has rows and columns of the identity.
    both = real[:, None] & real[None, :]
    gram = tl.where(both, tl.exp2(-rate * distance), tl.where(row == column, 1.0, 0.0))
    at = pair * m * m + row * m + column
    inside = (row < m) & (column < m)
    tl.store(gram_ptr + at, gram, mask=inside)
    # What rows and columns of the inverse are multiplied by.
    root = tl.rsqrt(tl.sum(gram, 1)) if NORMALIZED else tl.full([BLOCK], 1.0, tl.float32)
    root = tl.where(real, root, 0.0)
    # So that no entry is above 1.
    unit = 1 + ridge
    target = (gram + tl.where(row == column, ridge, 0.0)) / unit
    middle = _inverse(target, m, ridge / unit) / unit
    middle *= root[:, None] * root[None, :]
    tl.store(middle_ptr + at, middle, mask=inside)


@triton.jit
def _inverse(a, m, least):
    """The inverse of symmetric ``a``, [BLOCK, BLOCK], whose eigenvalues are at least ``least``.

    Its diagonal is at most 1. Rows and columns from m on are not inverted: they have no entries but
    the diagonal's.

    By the sweep operator, Gauss and Jordan's elimination of a symmetric matrix in its own place,
    which leaves −a⁻¹. With c row k of a, p its entry k and b = c − e_k, step k subtracts b bᵀ / p
    and 2 e_k e_kᵀ; the latter is done after the last step. Each p is on the diagonal of a Schur
    complement, so without rounding it is between ``least`` and 1.
    """
    number = tl.arange(0, a.shape[0])
    rows, columns = number[:, None], number[None, :]
    for k in range(m):
        # [1, BLOCK]
        row = tl.sum(tl.where(rows == k, a, 0.0), 0, keep_dims=True)
        pivot = tl.maximum(tl.sum(tl.where(columns == k, row, 0.0)), least)
        row = tl.where(columns == k, pivot - 1, row) * tl.rsqrt(pivot)
        a -= tl.trans(row) * row
    return tl.where(rows == columns, 2 - a, -a)


@triton.jit(do_not_specialize=CHANGING)
def _middle_factor_gradient(
    l_ptr, l_batch, l_head, l_row, dmoved_ptr, dmoved_batch, dmoved_head, dmoved_row, padding_ptr,
    # M, A, dM, memory for D and δ, and the output
    middle_ptr, gram_ptr, dm_ptr, sums_ptr, dl_ptr,
    # sizes
    m, heads, scale,
    D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dL_i = Σ_j H_ij (l_i − l_j) of one pair, a tile of rows after the other."""
    pair = tl.program_id(0).to(tl.int64)
    batch, head = pair // heads, pair % heads
    l_ptr += batch * l_batch + head * l_head
    matrix = pair * m * m
    middle_ptr += matrix
    gram_ptr += matrix
    dm_ptr += matrix
    whole = tl.arange(0, BLOCK)
    part = tl.arange(0, TILE)
    if sums_ptr is not None:
        sums_ptr += pair * 2 * m
        for first in range(0, m, TILE):
            row = first + part
            # [TILE, BLOCK]
            e = load_square(dm_ptr, row, whole, m) + load_transposed(dm_ptr, row, whole, m)
            sums = tl.sum(load_square(gram_ptr, row, whole, m), 1)
            sums = tl.where(row < m, sums, 1.0)
            slope = -0.5 * tl.sum(e * load_square(middle_ptr, row, whole, m), 1) / sums
            tl.store(sums_ptr + row, sums, mask=row < m)
            tl.store(sums_ptr + m + row, slope, mask=row < m)
        tl.debug_barrier()
    for first in range(0, m, TILE):
        row = first + part
        # [TILE, BLOCK]
        middle_e = tl.zeros([TILE, BLOCK], tl.float32)
        for k in range(0, m, TILE):
            e = load_square(dm_ptr, k + part, whole, m)
            e += load_transposed(dm_ptr, k + part, whole, m)
            middle = load_square(middle_ptr, row, k + part, m)
            middle_e += tl.dot(middle, e, input_precision=PRECISION)
        # [TILE, BLOCK_D]
        l = load_rows(l_ptr, 0, row, l_row, row < m, D, BLOCK_D).to(tl.float32)
        dl = tl.zeros([TILE, BLOCK_D], tl.float32)
        for k in range(0, m, TILE):
            column = k + part
            # [BLOCK, TILE], [TILE, TILE]
            middle = load_square(middle_ptr, whole, column, m)
            da = -tl.dot(middle_e, middle, input_precision=PRECISION)
            if sums_ptr is not None:
                sums = tl.load(sums_ptr + row, mask=row < m, other=1.0)
                other = tl.load(sums_ptr + column, mask=column < m, other=1.0)
                slope = tl.load(sums_ptr + m + row, mask=row < m, other=0.0)
                other_slope = tl.load(sums_ptr + m + column, mask=column < m, other=0.0)
                da = da * tl.sqrt(sums)[:, None] * tl.sqrt(other)[None, :]
                da += slope[:, None] + other_slope[None, :]
            h = -scale * load_square(gram_ptr, row, column, m) * da
            # It cancels, but for rounding.
            h = tl.where(row[:, None] == column[None, :], 0.0, h)
            y = load_rows(l_ptr, 0, column, l_row, column < m, D, BLOCK_D).to(tl.float32)
            dl += tl.sum(h, 1)[:, None] * l - tl.dot(h, y, input_precision=PRECISION)
        if dmoved_ptr is not None:
            at = dmoved_ptr + batch * dmoved_batch + head * dmoved_head
            dl += load_rows(at, 0, row, dmoved_row, row < m, D, BLOCK_D).to(tl.float32)
        dl = tl.where(_real(padding_ptr, batch, row, m)[:, None], dl, 0.0)
        store_rows(dl_ptr, pair * m, row, D, dl, row < m, D, BLOCK_D)


@triton.jit
def _real(padding_ptr, batch, landmark, m):
    """Which landmarks there are and are not padding."""
    real = landmark < m
    if padding_ptr is not None:
        real = real & (tl.load(padding_ptr + batch * m + landmark, mask=real, other=1) == 0)
    return real
