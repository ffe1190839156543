"""Tiles of the Gaussian kernel, and products of tiles that keep the digits of float32.

A factor of a product was either handed in by the caller or computed in float32. What was handed in
goes to the matrix units as it is. What was computed is cut into two pieces of the inputs' dtype,
its rounding and the rounding of the rest, which hold 16 bits together in bfloat16 and 22 in
float16: rounded once, the kernel's entries would lose what the inverse of a nearly singular Gram
matrix brings back to light. For float32 inputs there is one piece, and the matrix units are asked
for float32's precision.
"""

import triton
import triton.language as tl


@triton.jit
def _probe():
    pass


# Triton's interpreter multiplies the bit patterns of bfloat16, so there the operands are widened.
INTERPRETED = tl.constexpr(not isinstance(_probe, triton.JITFunction))


@triton.jit
def load_rows(
    pointer, rows, stride, valid, COLUMNS: tl.constexpr, BLOCK: tl.constexpr
):  # [rows, BLOCK]
    """Rows of a matrix whose columns are adjacent; 0 where not ``valid`` and beyond the columns."""
    columns = tl.arange(0, BLOCK)
    mask = valid[:, None]
    if COLUMNS != BLOCK:
        mask = mask & (columns < COLUMNS)[None, :]
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(pointer, rows, stride, tile, valid, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """The counterpart of ``load_rows``, in the dtype of the pointer."""
    columns = tl.arange(0, BLOCK)
    mask = valid[:, None]
    if COLUMNS != BLOCK:
        mask = mask & (columns < COLUMNS)[None, :]
    to = pointer + rows[:, None] * stride + columns[None, :]
    tl.store(to, tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_points(
    pointer,
    rows,
    stride,
    valid,
    center_pointer,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    CENTERED: tl.constexpr,
):
    """``load_rows`` of tokens or landmarks, moved towards the origin, and their squared norms."""
    points = load_rows(pointer, rows, stride, valid, COLUMNS, BLOCK)
    if CENTERED:
        columns = tl.arange(0, BLOCK)
        points -= tl.load(center_pointer + columns, mask=columns < COLUMNS, other=0.0)[None, :]
    wide = points.to(tl.float32)
    return points, tl.sum(wide * wide, 1)


@triton.jit
def exponent(x, x_square, y, y_square, rate, PRECISION: tl.constexpr):  # [rows of x, columns of y]
    """log₂ k(x, y) = −rate ‖x − y‖², at most 0, with rate = s log₂(e) / 2; NaN stays NaN.

    The points of ``y`` are its columns: what does not change in a loop is transposed before it, or
    it would be written to shared memory at every turn.
    """
    cross = dot(x, x, y, y, 1, 1, PRECISION)
    distance = x_square[:, None] + y_square[None, :] - 2 * cross
    return -rate * tl.maximum(distance, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def split(tile, DTYPE: tl.constexpr, AT_MOST_ONE: tl.constexpr):
    """A tile as unit · (first + second) with pieces of ``DTYPE``; one in that dtype stays as it is.

    float16 has few exponents, so there the unit is the largest entry, but for tiles that have none
    far above 1. What does not change in a loop is cut before the launch, by ``in_pieces``.
    """
    unit = 1.0
    if tile.dtype == DTYPE:
        first = tile
        second = tile
    else:
        if DTYPE == tl.float16:
            if not AT_MOST_ONE:
                largest = tl.max(tl.abs(tile))
                unit = tl.where(largest > 0, largest, 1.0)
                tile = tile / unit
        first = tile.to(DTYPE)
        second = (tile - first.to(tl.float32)).to(DTYPE)
    return first, second, unit


@triton.jit
def dot(
    a, a_rest, b, b_rest, A_PIECES: tl.constexpr, B_PIECES: tl.constexpr, PRECISION: tl.constexpr
):
    """The product of two factors of one or two pieces each, accumulated in float32.

    It has an accumulator of its own: matrix units cut off what they add, which the sum over a
    thousand tiles would show.
    """
    product = tl.zeros([a.shape[0], b.shape[1]], tl.float32)
    product = _add_dot(product, a, b, PRECISION)
    if A_PIECES == 2:
        product = _add_dot(product, a_rest, b, PRECISION)
    if B_PIECES == 2:
        product = _add_dot(product, a, b_rest, PRECISION)
    return product


@triton.jit
def add_dot(
    total,
    unit,
    a,
    a_rest,
    b,
    b_rest,
    A_PIECES: tl.constexpr,
    B_PIECES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """total + unit · a b for a few summands, which may then share the accumulator."""
    if a.dtype == tl.float16:
        total += unit * dot(a, a_rest, b, b_rest, A_PIECES, B_PIECES, PRECISION)
    else:
        total = _add_dot(total, a, b, PRECISION)
        if A_PIECES == 2:
            total = _add_dot(total, a_rest, b, PRECISION)
        if B_PIECES == 2:
            total = _add_dot(total, a, b_rest, PRECISION)
    return total


@triton.jit
def _add_dot(product, a, b, PRECISION: tl.constexpr):
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, product, input_precision=PRECISION)


@triton.jit
def without_padding(padding_ptr, first, row, real, PADDED: tl.constexpr):  # [row]
    """Of the ``real`` tokens or landmarks from ``first`` on those that are no padding."""
    if PADDED:
        real = real & (tl.load(padding_ptr + first + row, mask=real, other=1) == 0)
    return real


@triton.jit
def load_pieces(
    pointer,
    rest_pointer,
    first,
    rows,
    stride: tl.constexpr,
    real,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECES: tl.constexpr,
):  # [rows, BLOCK] twice
    """Rows from ``first`` on of a factor's pieces; the same rows twice where it has but one."""
    start = tl.cast(first, tl.int64) * stride
    piece = load_rows(pointer + start, rows, stride, real, COLUMNS, BLOCK)
    rest = piece
    if PIECES == 2:
        rest = load_rows(rest_pointer + start, rows, stride, real, COLUMNS, BLOCK)
    return piece, rest


@triton.jit
def load_middle(pointer, rest_pointer, rows, columns, m, PIECES: tl.constexpr):  # [rows, columns]
    """A tile of the pieces of M, (m, m); 0 beyond it."""
    mask = (rows < m)[:, None] & (columns < m)[None, :]
    at = rows[:, None] * m + columns[None, :]
    piece = tl.load(pointer + at, mask=mask, other=0.0)
    rest = piece
    if PIECES == 2:
        rest = tl.load(rest_pointer + at, mask=mask, other=0.0)
    return piece, rest


@triton.jit
def load_unit(pointer, pair, DTYPE: tl.constexpr):
    """The unit of a factor's pieces, which only float16 needs."""
    unit = 1.0
    if DTYPE == tl.float16:
        unit = tl.load(pointer + pair)
    return unit


@triton.jit
def through_middle(
    x_columns,
    x_square,
    l_ptr,
    l_row: tl.constexpr,
    middle_ptr,
    middle_rest_ptr,
    middle_unit,
    center_ptr,
    rows,
    m,
    rate,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CENTERED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # [rows, tokens]
    """Some rows of M Pᵀ, where M takes more than one block: P is computed once more for each."""
    DTYPE: tl.constexpr = x_columns.dtype
    PIECES: tl.constexpr = 1 if DTYPE == tl.float32 else 2
    landmark = tl.arange(0, BLOCK_M)
    heard = tl.zeros([BLOCK_M, x_columns.shape[1]], tl.float32)
    for block in range(0, m, BLOCK_M):
        columns = block + landmark
        l, l_square = load_points(
            l_ptr + tl.cast(block, tl.int64) * l_row,
            landmark, l_row, columns < m, center_ptr, D, BLOCK_D, CENTERED,
        )  # fmt: skip
        p = tl.exp2(exponent(l, l_square, x_columns, x_square, rate, PRECISION))
        p_first, p_second, _ = split(p, DTYPE, True)
        middle, middle_rest = load_middle(middle_ptr, middle_rest_ptr, rows, columns, m, PIECES)
        heard = add_dot(
            heard, middle_unit, middle, middle_rest, p_first, p_second, PIECES, PIECES, PRECISION
        )
    return heard
