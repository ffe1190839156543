"""Tiles of the Gaussian kernel, and products of tiles that keep the digits of float32.

A factor of a product is either an argument of the caller or computed in float32. Arguments go to
the matrix units as they are. Computed factors are cut into two pieces of the inputs' dtype: the
factor in that dtype, and the rest. Together they hold 16 bits in bfloat16 and 22 in float16. In a
loop bfloat16 is cut by truncation. That costs one bit and no conversions, which are computed by the
unit that the exponentials need.
Rounding the entries of P only once would not do: the inverse of a nearly singular Gram matrix
amplifies their error. For float32 inputs there is one piece, and the matrix units are asked for
float32's precision.

Pointers of absent tensors are None. Triton then compiles the kernel without them.
"""

import triton
import triton.language as tl


@triton.jit
def pair_of_program(heads, stretches, blocks):
    """The number of this program's stretch of tokens, its pair, batch, head and block.

    All are on the first axis of the grid: the others end at 65,535.
    """
    program = tl.program_id(0).to(tl.int64)
    unit = program // blocks
    pair = unit // stretches
    return unit, pair, pair // heads, pair % heads, program % blocks


@triton.jit
def blocks_of(m, BLOCK_M: tl.constexpr):
    """Blocks of landmarks, at least 1."""
    return tl.maximum(tl.cdiv(m, BLOCK_M), 1)


@triton.jit
def stretch_of_program(unit, stretches, length, n):
    """The first token of a program's stretch, and the one after its last."""
    begin = unit % stretches * length
    return begin, tl.minimum(begin + length, n)


@triton.jit
def load_rows(ptr, first, row, stride, real, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows from ``first`` on, [rows, BLOCK]; 0 where not ``real`` and beyond the columns.

    With None for ``first`` they are any rows. Their offsets are then 64 bits wide.
    """
    at, mask = _at_rows(ptr, first, row, stride, real, COLUMNS, BLOCK)
    return tl.load(at, mask=mask, other=0.0)


@triton.jit
def store_rows(ptr, first, row, stride, tile, real, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """The counterpart of ``load_rows``, in the dtype of the pointer."""
    at, mask = _at_rows(ptr, first, row, stride, real, COLUMNS, BLOCK)
    tl.store(at, tile.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _at_rows(ptr, first, row, stride, real, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    if first is None:
        row = row.to(tl.int64)
    else:
        ptr += tl.cast(first, tl.int64) * stride
    columns = tl.arange(0, BLOCK)
    mask = real[:, None]
    if COLUMNS != BLOCK:
        mask = mask & (columns < COLUMNS)[None, :]
    # Offsets are added one after the other. Their sum would take a register for each entry.
    return ptr + row[:, None] * stride + columns[None, :], mask


@triton.jit
def without_padding(padding_ptr, first, row, inside):
    """Which of the tokens or landmarks ``inside`` are not padding."""
    if padding_ptr is not None:
        inside = inside & (tl.load(padding_ptr + first + row, mask=inside, other=1) == 0)
    return inside


@triton.jit
def load_points(
    ptr, first, row, stride, real, center_ptr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr
):  # [rows, BLOCK], [rows]
    """Tokens or landmarks, less the center, and their squared norms."""
    points = load_rows(ptr, first, row, stride, real, COLUMNS, BLOCK)
    if center_ptr is not None:
        columns = tl.arange(0, BLOCK)
        points -= tl.load(center_ptr + columns, mask=columns < COLUMNS, other=0.0)[None, :]
    wide = points.to(tl.float32)
    return points, tl.sum(wide * wide, 1)


@triton.jit
def load_landmarks(
    l_ptr, first, landmark, l_row, inside, padding_ptr, center_ptr,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A block of landmarks, their squared norms, and which are ``inside`` and not padding.

    [landmarks, BLOCK_D], [landmarks], [landmarks].
    """
    real = without_padding(padding_ptr, first, landmark, inside)
    l, l_square = load_points(l_ptr, first, landmark, l_row, real, center_ptr, D, BLOCK_D)
    return l, l_square, real


@triton.jit
def load_weights(
    ptr, rest_ptr, column_ptr, first, landmark, stride, real,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of rows of a factor's pieces, and of the column beside it, 0 if there is none.

    [landmarks, BLOCK] twice, [landmarks]. A factor of one piece is returned twice.
    """
    piece = load_rows(ptr, first, landmark, stride, real, COLUMNS, BLOCK)
    rest = piece
    if rest_ptr is not None:
        rest = load_rows(rest_ptr, first, landmark, stride, real, COLUMNS, BLOCK)
    column = 0.0
    if column_ptr is not None:
        column = tl.load(column_ptr + (first + landmark), mask=real, other=0.0)
    return piece, rest, column


@triton.jit
def load_middle(ptr, rest_ptr, rows, columns, m):  # [rows, columns] twice
    """A tile of the pieces of M, (m, m); 0 beyond it."""
    piece = load_square(ptr, rows, columns, m)
    rest = piece
    if rest_ptr is not None:
        rest = load_square(rest_ptr, rows, columns, m)
    return piece, rest


@triton.jit
def load_square(ptr, rows, columns, m):
    """Some rows and columns of a matrix of m × m, 0 beyond it."""
    mask = (rows < m)[:, None] & (columns < m)[None, :]
    return tl.load(ptr + rows[:, None] * m + columns[None, :], mask=mask, other=0.0)


@triton.jit
def load_transposed(ptr, rows, columns, m):
    """The same of its transpose."""
    mask = (rows < m)[:, None] & (columns < m)[None, :]
    return tl.load(ptr + rows[:, None] + columns[None, :] * m, mask=mask, other=0.0)


@triton.jit
def load_unit(ptr, pair):
    """The unit of a factor's pieces, 1 if there is none."""
    unit = 1.0
    if ptr is not None:
        unit = tl.load(ptr + pair)
    return unit


@triton.jit
def exponent(x, x_square, y, y_square, rate, PRECISION: tl.constexpr):  # [rows of x, columns of y]
    """log₂ k(x, y) = −rate ‖x − y‖², at most 0, with rate = s log₂(e) / 2; NaN stays NaN.

    The points of ``y`` are its columns. Transpose what does not change in a loop before the loop,
    or it is written to shared memory at every turn.
    """
    cross = dot(x, x, y, y, 1, 1, PRECISION)
    distance = x_square[:, None] + y_square[None, :] - 2 * cross
    return -rate * tl.maximum(distance, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def shifted(e, shift, real):  # [landmarks, tokens]
    """Exponents less the shift of each token, and −∞ for padded landmarks."""
    return tl.where(real[:, None], e - shift[None, :], float("-inf"))


@triton.jit
def marked(x, flag):
    """Float32 numbers that carry a flag in the place of their last bit; see ``is_marked``."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits & -2) | flag.to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def is_marked(x):
    """The flags of ``marked`` numbers."""
    return (x.to(tl.int32, bitcast=True) & 1) == 1


@triton.jit
def floored_share(denominator, terms, floor, underflow, to, inside):  # [tokens]
    """One over the denominator or its floor, and 0 where all terms underflow.

    What was divided by is stored, marked where that is the floor.
    """
    lowest = floor * terms
    some = terms > underflow
    at_floor = some & (tl.abs(denominator) < lowest)
    divisor = tl.where(at_floor, tl.where(denominator < 0, -lowest, lowest), denominator)
    divisor = tl.where(some, divisor, 1.0)
    tl.store(to, marked(divisor, at_floor), mask=inside)
    return tl.where(some, 1 / divisor, 0.0)


@triton.jit
def floored_gradient(dd, denominator, floor):  # [tokens] twice
    """The gradients of D and T from that of D̃, marked at the floor; see ``quotient_gradient``."""
    at_floor = is_marked(denominator)
    signed = tl.where(denominator < 0, -floor, floor)
    return tl.where(at_floor, 0.0, dd), tl.where(at_floor, signed * dd, 0.0)


@triton.jit
def split(tile, DTYPE: tl.constexpr, AT_MOST_ONE: tl.constexpr):
    """A tile as unit · (first + second) with pieces of ``DTYPE``; one in that dtype stays as it is.

    In bfloat16 the pieces are truncated.

    float16 has few exponents. There the unit is the largest entry, except for tiles whose entries
    are at most about 1. What does not change in a loop is cut before the launch, by ``in_pieces``.
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
        first = _cut(tile, DTYPE)
        second = _cut(tile - first.to(tl.float32), DTYPE)
    return first, second, unit


@triton.jit
def _cut(tile, DTYPE: tl.constexpr):
    """The upper half of float32 as bfloat16, or the tile rounded to another dtype."""
    if DTYPE == tl.bfloat16:
        cut = (tile.to(tl.int32, bitcast=True) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        cut = tile.to(DTYPE)
    return cut


@triton.jit
def dot(
    a, a_rest, b, b_rest, A_PIECES: tl.constexpr, B_PIECES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The product of two factors of one or two pieces each, accumulated in float32.

    It has its own accumulator. Matrix units truncate what they add, and the error of a sum over
    thousands of tiles would grow.
    """
    product = tl.zeros([a.shape[0], b.shape[1]], tl.float32)
    return _add_dots(product, a, a_rest, b, b_rest, A_PIECES, B_PIECES, PRECISION)


@triton.jit
def add_dot(
    total, unit, a, a_rest, b, b_rest,
    A_PIECES: tl.constexpr, B_PIECES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total + unit · a b for a few summands, which may then share the accumulator."""
    if a.dtype == tl.float16:
        total += unit * dot(a, a_rest, b, b_rest, A_PIECES, B_PIECES, PRECISION)
    else:
        total = _add_dots(total, a, a_rest, b, b_rest, A_PIECES, B_PIECES, PRECISION)
    return total


@triton.jit
def _add_dots(
    total, a, a_rest, b, b_rest,
    A_PIECES: tl.constexpr, B_PIECES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    total = _add_dot(total, a, b, PRECISION)
    if A_PIECES == 2:
        total = _add_dot(total, a_rest, b, PRECISION)
    if B_PIECES == 2:
        total = _add_dot(total, a, b_rest, PRECISION)
    return total


@triton.jit
def _compiled_add_dot(total, a, b, PRECISION: tl.constexpr):
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _interpreted_add_dot(total, a, b, PRECISION: tl.constexpr):
    return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision=PRECISION)


# Triton's interpreter multiplies the bit patterns of bfloat16, so there the operands are widened.
_is_compiled = isinstance(_compiled_add_dot, triton.JITFunction)
_add_dot = _compiled_add_dot if _is_compiled else _interpreted_add_dot


@triton.jit
def through_middle(
    x_columns, x_square, l_ptr, l_row,
    middle_ptr, middle_rest_ptr, middle_unit, center_ptr, rows, m, rate,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Some rows of M Pᵀ, [rows, tokens], where M takes several blocks.

    P is computed again for each of them.
    """
    DTYPE: tl.constexpr = x_columns.dtype
    PIECES: tl.constexpr = 1 if DTYPE == tl.float32 else 2
    landmark = tl.arange(0, BLOCK_M)
    total = tl.zeros([BLOCK_M, x_columns.shape[1]], tl.float32)
    for first in range(0, m, BLOCK_M):
        columns = first + landmark
        l, l_square, _ = load_landmarks(
            l_ptr, first, landmark, l_row, columns < m, None, center_ptr, D, BLOCK_D
        )
        p = tl.exp2(exponent(l, l_square, x_columns, x_square, rate, PRECISION))
        p, p_rest, _ = split(p, DTYPE, True)
        middle, middle_rest = load_middle(middle_ptr, middle_rest_ptr, rows, columns, m)
        total = add_dot(
            total, middle_unit, middle, middle_rest, p, p_rest, PIECES, PIECES, PRECISION
        )
    return total
