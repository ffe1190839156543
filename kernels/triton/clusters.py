"""The landmark nearest to each token, and sums over clusters: together a step of k-means."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from softattn.kernels.arithmetic import (
    blocks_of,
    dot,
    exponent,
    load_landmarks,
    load_points,
    load_rows,
    pair_of_program,
    store_rows,
    stretch_of_program,
    without_padding,
)
from softattn.kernels.launching import CHANGING, padding_argument
from softattn.kernels.token_pass import TokenPass


def nearest_landmarks(
    tokens: Tensor,
    landmarks: Tensor,
    *,
    center: Tensor | None = None,
    padding: Tensor | None = None,
    landmark_padding: Tensor | None = None,
) -> Tensor:
    """The number of the landmark nearest to each token; of equally near ones the first.

    Args:
        tokens: X, (batch, heads, n, d).
        landmarks: L, (batch, heads, m, d) with m of at least 1, in the dtype of the tokens.
        center: (batch, heads, d), subtracted from tokens and landmarks.
        padding: (batch, n), True at padded tokens.
        landmark_padding: (batch, m), True at padded landmarks, which are nearest to none.

    Returns:
        (batch, heads, n), int64; m for padded tokens. A distance that is NaN counts as the least.
    """
    labels, _ = _launch_nearest(tokens, landmarks, None, None, center, padding, landmark_padding)
    return labels


def labels_and_places(
    tokens: Tensor,
    landmarks: Tensor,
    *,
    direction: Tensor,
    origin: Tensor | None = None,
    center: Tensor | None = None,
    padding: Tensor | None = None,
    landmark_padding: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``nearest_landmarks``, and the place of each token on a line, from the same tile.

    Args:
        tokens: X, (batch, heads, n, d).
        landmarks: L, as in ``nearest_landmarks``.
        direction: (batch, heads, d), float32.
        origin: (batch, heads, d), float32, what is subtracted from tokens for their places alone;
            None where there is a ``center``.
        center: (batch, heads, d), subtracted from tokens and landmarks.
        padding: (batch, n), True at padded tokens.
        landmark_padding: (batch, m), True at padded landmarks, which are nearest to none.

    Returns:
        labels: as ``nearest_landmarks`` returns them.
        places: Σ_f x_if direction_f in float32, (batch, heads, n), x less the origin or the center;
            0 for padded tokens.
    """
    labels, places = _launch_nearest(
        tokens, landmarks, direction, origin, center, padding, landmark_padding
    )
    assert places is not None
    return labels, places


def _launch_nearest(
    tokens: Tensor,
    landmarks: Tensor,
    direction: Tensor | None,
    origin: Tensor | None,
    center: Tensor | None,
    padding: Tensor | None,
    landmark_padding: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    d = tokens.shape[3]
    # Only the order of the distances matters.
    tiles = TokenPass(
        "nearest_landmarks", tokens, landmarks, d, rate=1.0, center=center, padding=padding
    )
    labels = tiles.empty(tiles.n, dtype=torch.long)
    places = None if direction is None else tiles.empty(tiles.n)
    tiles.launch(
        _nearest_landmarks,
        tiles.stretches(),
        l_padding_ptr=padding_argument(landmark_padding),
        direction_ptr=direction,
        origin_ptr=origin,
        label_ptr=labels,
        place_ptr=places,
    )
    return labels, places


def cluster_sums(tokens: Tensor, labels: Tensor, m: int) -> Tensor:
    """The sum of the tokens of each label, and their number as one more column.

    Args:
        tokens: X, (batch, heads, n, d).
        labels: (batch, heads, n), int64; tokens whose label is not below m are left out.
        m: how many labels there are.

    Returns:
        (batch, heads, m, d + 1) in float32. Stretches of tokens are summed apart and then added in
        a fixed order, so every run gives the same bits.
    """
    d = tokens.shape[3]
    # The sums stand where the other passes have their landmarks.
    sums = tokens.new_empty(*tokens.shape[:2], m, d)
    tiles = TokenPass("cluster_sums", tokens, sums, d, rate=1.0, center=None, padding=None)
    stretches = tiles.stretches(tiles.blocks)
    partial = tiles.empty(stretches.number, m, d + 1)
    tiles.launch(
        _cluster_sums, stretches, tiles.blocks, label_ptr=labels.contiguous(), partial_ptr=partial
    )
    return partial.sum(2) if stretches.number > 1 else partial[:, :, 0]


@triton.jit(do_not_specialize=CHANGING)
def _nearest_landmarks(
    # tokens and landmarks
    x_ptr, x_batch, x_head, x_row,
    l_ptr, l_batch, l_head, l_row,
    center_ptr, padding_ptr, l_padding_ptr,
    # a line, (batch, heads, D) each
    direction_ptr, origin_ptr,
    # labels and places, (batch, heads, n)
    label_ptr, place_ptr,
    # sizes
    n, m, heads, stretches, length, rate, D: tl.constexpr, D_V: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """j(i) = argmax_j log₂ k(x_i, l_j) for one stretch of tokens, and their places on a line."""
    unit, pair, batch, head, _number = pair_of_program(heads, stretches, 1)
    x_ptr += batch * x_batch + head * x_head
    l_ptr += batch * l_batch + head * l_head
    if center_ptr is not None:
        center_ptr += pair * D
    if padding_ptr is not None:
        padding_ptr += batch * n
    if l_padding_ptr is not None:
        l_padding_ptr += batch * m
    label_ptr += pair * n
    if direction_ptr is not None:
        place_ptr += pair * n
        feature = tl.arange(0, BLOCK_D)
        direction = tl.load(direction_ptr + pair * D + feature, mask=feature < D, other=0.0)
        start = 0.0
        if origin_ptr is not None:
            origin = tl.load(origin_ptr + pair * D + feature, mask=feature < D, other=0.0)
            start = tl.sum(origin * direction, 0)

    landmark = tl.arange(0, BLOCK_M)
    token = tl.arange(0, BLOCK_N)
    begin, end = stretch_of_program(unit, stretches, length, n)
    for first in range(begin, end, BLOCK_N):
        inside = token < n - first
        valid = without_padding(padding_ptr, first, token, inside)
        # [BLOCK_N, BLOCK_D], [BLOCK_N]
        x, x_square = load_points(x_ptr, first, token, x_row, valid, center_ptr, D, BLOCK_D)
        if direction_ptr is not None:
            along = tl.sum(x.to(tl.float32) * direction[None, :], 1) - start
            tl.store(place_ptr + first + token, tl.where(valid, along, 0.0), mask=inside)
        closest = tl.full([BLOCK_N], float("-inf"), tl.float32)
        label = tl.zeros([BLOCK_N], tl.int32)
        for block in range(0, m, BLOCK_M):
            # [BLOCK_M, BLOCK_D], [BLOCK_M], [BLOCK_M]
            l, l_square, real = load_landmarks(
                l_ptr, block, landmark, l_row, landmark < m - block, l_padding_ptr, center_ptr,
                D, BLOCK_D,
            )  # fmt: skip
            # [BLOCK_N, BLOCK_M]
            e = exponent(x, x_square, tl.trans(l), l_square, rate, PRECISION)
            e = tl.where(e == e, e, float("inf"))
            e = tl.where(real[None, :], e, float("-inf"))
            best, place = tl.max(e, 1, return_indices=True)
            closer = best > closest
            label = tl.where(closer, block + place, label)
            closest = tl.where(closer, best, closest)
        label = tl.where(valid, label, m)
        tl.store(label_ptr + first + token, label.to(tl.int64), mask=inside)


@triton.jit(do_not_specialize=CHANGING)
def _cluster_sums(
    # tokens; where other passes have landmarks there is nothing to read
    x_ptr, x_batch, x_head, x_row,
    l_ptr, l_batch, l_head, l_row,
    center_ptr, padding_ptr,
    # labels, (batch, heads, n), and sums, (batch, heads, stretches, m, D + 1)
    label_ptr, partial_ptr,
    # sizes
    n, m, heads, stretches, length, rate, D: tl.constexpr, D_V: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Σ_i B_ij x_i and Σ_i B_ij over one stretch of tokens, B_ij = 1 where j(i) = j, else 0."""
    blocks = blocks_of(m, BLOCK_M)
    unit, pair, batch, head, number = pair_of_program(heads, stretches, blocks)
    x_ptr += batch * x_batch + head * x_head
    label_ptr += pair * n
    partial_ptr += unit * m * (D + 1)

    block = number * BLOCK_M
    landmark = tl.arange(0, BLOCK_M)
    inside = landmark < m - block
    sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    numbers = tl.zeros([BLOCK_M], tl.float32)
    token = tl.arange(0, BLOCK_N)
    begin, end = stretch_of_program(unit, stretches, length, n)
    for first in range(begin, end, BLOCK_N):
        valid = token < n - first
        # [BLOCK_N, BLOCK_D], [BLOCK_N]
        x = load_rows(x_ptr, first, token, x_row, valid, D, BLOCK_D)
        label = tl.load(label_ptr + first + token, mask=valid, other=m) - block
        # [BLOCK_M, BLOCK_N]
        members = (label.to(tl.int32)[None, :] == landmark[:, None]).to(tl.float32)
        numbers += tl.sum(members, 1)
        members = members.to(x.dtype)
        sums += dot(members, members, x, x, 1, 1, PRECISION)
    partial_ptr += block * (D + 1)
    store_rows(partial_ptr, 0, landmark, D + 1, sums, inside, D, BLOCK_D)
    tl.store(partial_ptr + landmark * (D + 1) + D, numbers, mask=inside)
