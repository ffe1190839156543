"""M between the landmarks: Gram block, ridge, Newton's iteration and D^-½, in one launch."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from softattn.kernels import configurations, devices, launching
from softattn.kernels.arithmetic import load_rows, load_square, load_transposed, store_rows
from softattn.kernels.launching import CHANGING, block_of, padding_argument, rows_argument
from softattn.kernels.newton import newton_coefficients

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
    lower: float,
    steps: int,
    normalized: bool,
    padding: Tensor | None = None,
) -> MiddleFactor:
    """M = (A + ε I)⁻¹ with A_ij = 2^(−rate ‖l_i − l_j‖²), or D^-½ (A + ε I)⁻¹ D^-½, D = diag(A 1).

    The inverse is that of ``steps`` Newton steps from I / ‖A + ε I‖∞, see ``newton``.

    Args:
        landmarks: L, (batch, heads, m, d), m up to ``MOST_LANDMARKS``.
        rate: s log₂(e) / 2.
        ridge: ε.
        lower: the lower end of the interval that holds the spectrum of (A + ε I) / ‖A + ε I‖∞.
        steps: how many.
        normalized: whether to multiply by D^-½.
        padding: (batch, m), True at padded landmarks: their rows and columns of M are 0.
    """
    batch, heads, m, d = landmarks.shape
    device = devices.device_of(landmarks.device)
    chosen = configurations.choose("middle_factor", m, m, m, torch.float32, device)
    block = block_of(m)
    tile = min(chosen.tokens, block)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, device=landmarks.device, dtype=dtype)

    moved = empty(batch, heads, m, d, dtype=landmarks.dtype)
    gram, middle = empty(batch, heads, m, m), empty(batch, heads, m, m)
    launching.launch(
        _middle_factor,
        (batch * heads,),
        dict(
            **rows_argument("l", landmarks),
            padding_ptr=padding_argument(padding),
            moved_ptr=moved,
            gram_ptr=gram,
            middle_ptr=middle,
            buffer_ptr=None if tile == block else empty(2, batch, heads, m, m),
            root_ptr=empty(batch, heads, m) if normalized else None,
            m=m,
            heads=heads,
            rate=rate,
            ridge=ridge,
            lower=lower,
            steps=steps,
            D=d,
            BLOCK=block,
            BLOCK_D=block_of(d),
            TILE=tile,
            PRECISION=device.precision,
        ),
        chosen,
    )
    return MiddleFactor(moved, middle, gram)


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
    sums = torch.empty((batch, heads, 2, m), device=landmarks.device) if normalized else None
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
    # outputs, two buffers for V where it takes several tiles, and 1 / √D
    moved_ptr, gram_ptr, middle_ptr, buffer_ptr, root_ptr,
    # sizes
    m, heads, rate, ridge, lower, steps,
    D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """M of one pair. Where TILE is BLOCK, A and V stay on the chip, else they are in the cache."""
    pair = tl.program_id(0).to(tl.int64)
    batch = pair // heads
    l_ptr += batch * l_batch + pair % heads * l_head
    matrix = pair * m * m
    whole = tl.arange(0, BLOCK)
    part = tl.arange(0, TILE)
    real = _real(padding_ptr, batch, whole, m)
    # [BLOCK, BLOCK_D]
    l = load_rows(l_ptr, 0, whole, l_row, real, D, BLOCK_D)
    if padding_ptr is not None:
        number = tl.maximum(tl.sum(real.to(tl.float32), 0), 1.0)
        mean = (tl.sum(l.to(tl.float32), 0) / number).to(l.dtype)
        l = tl.where(real[:, None], l, mean[None, :])
    store_rows(moved_ptr, pair * m, whole, D, l, whole < m, D, BLOCK_D)

    # A, its row sums, and the norm of A + ε I.
    norm = 0.0
    gram = tl.zeros([TILE, BLOCK], tl.float32)
    for first in range(0, m, TILE):
        row = first + part
        row_real = _real(padding_ptr, batch, row, m)
        distance = tl.zeros([TILE, BLOCK], tl.float32)
        for feature in range(D):
            # [TILE], [BLOCK]
            x = tl.load(l_ptr + row * l_row + feature, mask=row_real, other=0.0).to(tl.float32)
            y = tl.load(l_ptr + whole * l_row + feature, mask=real, other=0.0).to(tl.float32)
            difference = x[:, None] - y[None, :]
            distance += difference * difference
        same = row[:, None] == whole[None, :]
        gram = tl.exp2(-rate * distance)
        if padding_ptr is not None:
            both = row_real[:, None] & real[None, :]
            gram = tl.where(both, gram, tl.where(same, 1.0, 0.0))
        inside = (row < m)[:, None] & (whole < m)[None, :]
        gram = tl.where(inside, gram, 0.0)
        tl.store(gram_ptr + matrix + row[:, None] * m + whole[None, :], gram, mask=inside)
        sums = tl.sum(gram, 1)
        # NaN comes into V with A.
        norm = tl.maximum(norm, tl.max(tl.where(sums == sums, sums, 0.0)))
        if root_ptr is not None:
            root = tl.rsqrt(tl.where(row < m, sums, 1.0))
            tl.store(root_ptr + pair * m + row, root, mask=row < m)
    norm += ridge

    # The first step, from I / norm, needs no product.
    keep, subtract, raised = newton_coefficients(lower)
    some = steps > 0
    keep = tl.where(some, keep, 1.0) / norm
    subtract = tl.where(some, subtract, 0.0) / (norm * norm)
    lower = tl.where(some, raised, lower)
    if TILE == BLOCK:
        # The only tile of A is still here.
        diagonal = (part[:, None] == whole[None, :]) & (whole < m)[None, :]
        a = gram + tl.where(diagonal, ridge, 0.0)
        v = tl.where(diagonal, keep, 0.0) - subtract * a
        for _ in range(1, steps):
            keep, subtract, lower = newton_coefficients(lower)
            va = tl.dot(v, a, input_precision=PRECISION)
            v = keep * v - subtract * tl.dot(va, v, input_precision=PRECISION)
        if root_ptr is not None:
            tl.debug_barrier()
        _store_middle(
            middle_ptr + matrix, v * (2 / (1 + lower)), root_ptr, pair, part, real, whole, real, m,
        )  # fmt: skip
    else:
        apart = tl.num_programs(0).to(tl.int64) * m * m
        tl.debug_barrier()
        for first in range(0, m, TILE):
            row = first + part
            a = _load_target(gram_ptr + matrix, row, whole, m, ridge)
            same = (row[:, None] == whole[None, :]) & (row < m)[:, None]
            v = tl.where(same, keep, 0.0) - subtract * a
            inside = (row < m)[:, None] & (whole < m)[None, :]
            tl.store(buffer_ptr + matrix + row[:, None] * m + whole[None, :], v, mask=inside)
        for step in range(1, steps):
            keep, subtract, lower = newton_coefficients(lower)
            here_ptr = buffer_ptr + (step - 1) % 2 * apart + matrix
            there_ptr = buffer_ptr + step % 2 * apart + matrix
            tl.debug_barrier()
            for first in range(0, m, TILE):
                row = first + part
                # [TILE, BLOCK]
                v = load_square(here_ptr, row, whole, m)
                vav = tl.zeros([TILE, BLOCK], tl.float32)
                for k in range(0, m, TILE):
                    # [BLOCK, TILE], [TILE, BLOCK]
                    a_k = _load_target(gram_ptr + matrix, whole, k + part, m, ridge)
                    v_k = load_square(here_ptr, k + part, whole, m)
                    va = tl.dot(v, a_k, input_precision=PRECISION)
                    vav += tl.dot(va, v_k, input_precision=PRECISION)
                v = keep * v - subtract * vav
                inside = (row < m)[:, None] & (whole < m)[None, :]
                tl.store(there_ptr + row[:, None] * m + whole[None, :], v, mask=inside)
        tl.debug_barrier()
        last_ptr = buffer_ptr + tl.maximum(steps - 1, 0) % 2 * apart + matrix
        for first in range(0, m, TILE):
            row = first + part
            v = load_square(last_ptr, row, whole, m) * (2 / (1 + lower))
            _store_middle(
                middle_ptr + matrix, v, root_ptr, pair, row, _real(padding_ptr, batch, row, m),
                whole, real, m,
            )  # fmt: skip


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


@triton.jit
def _load_target(gram_ptr, rows, columns, m, ridge):
    """Some rows and columns of A + ε I."""
    diagonal = (rows[:, None] == columns[None, :]) & (rows < m)[:, None]
    return load_square(gram_ptr, rows, columns, m) + tl.where(diagonal, ridge, 0.0)


@triton.jit
def _store_middle(ptr, v, root_ptr, pair, row, row_real, column, real, m):
    """Stores rows of V, 0 for padded landmarks, between the roots where there are any."""
    if root_ptr is not None:
        of_rows = tl.load(root_ptr + pair * m + row, mask=row < m, other=0.0)
        of_columns = tl.load(root_ptr + pair * m + column, mask=column < m, other=0.0)
        v = of_rows[:, None] * v * of_columns[None, :]
    v = tl.where(row_real[:, None] & real[None, :], v, 0.0)
    inside = (row < m)[:, None] & (column < m)[None, :]
    tl.store(ptr + row[:, None] * m + column[None, :], v, mask=inside)
