"""Nearest landmarks and sums over their tokens, tile by tile.

``torch.compile`` calls each of them as one operator.
"""

import math

import torch
from torch import Tensor

from softattn.common.compiler import is_compiled, is_exported
from softattn.common.precision import compute_dtype
from softattn.common.products import matmul
from softattn.common.rows import rows_of_pairs
from softattn.eager.passes import Landmarks
from softattn.eager.tiles import token_slices


def nearest_landmarks(
    tokens: Tensor,
    landmarks: Tensor,
    key_padding_mask: Tensor | None,
    landmark_padding_mask: Tensor | None,
) -> Tensor:
    """See ``Backend.nearest_landmarks``."""
    compute = _nearest_operator if is_compiled() else _nearest_landmarks
    return compute(tokens, landmarks, key_padding_mask, landmark_padding_mask)


def labels_and_places(
    tokens: Tensor,
    landmarks: Tensor,
    center: Tensor,
    direction: Tensor,
    key_padding_mask: Tensor | None,
    landmark_padding_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See ``Backend.labels_and_places``."""
    compute = _places_operator if is_compiled() else _labels_and_places
    return compute(tokens, landmarks, center, direction, key_padding_mask, landmark_padding_mask)


def cluster_sums(tokens: Tensor, labels: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """See ``Backend.cluster_sums``."""
    compute = _sums_operator if is_compiled() else _cluster_sums
    return compute(tokens, labels, m)


def _nearest_landmarks(
    tokens: Tensor,
    landmarks: Tensor,
    key_padding_mask: Tensor | None,
    landmark_padding_mask: Tensor | None,
) -> Tensor:
    m = landmarks.shape[-2]
    points = _points(tokens, landmarks)
    labels = [
        _nearest(points, points.centred(tokens[..., tile, :]), landmark_padding_mask)
        for tile in token_slices(tokens, m + tokens.shape[-1])
    ]
    return _with_padding(torch.cat(labels, -1), m, key_padding_mask)


def _labels_and_places(
    tokens: Tensor,
    landmarks: Tensor,
    center: Tensor,
    direction: Tensor,
    key_padding_mask: Tensor | None,
    landmark_padding_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    m = landmarks.shape[-2]
    points = _points(tokens, landmarks)
    # The place of the point that is taken off the tokens.
    start = matmul(points.center - center, direction.mT)
    labels, places = [], []
    for tile in token_slices(tokens, m + tokens.shape[-1]):
        x = points.centred(tokens[..., tile, :])
        labels.append(_nearest(points, x, landmark_padding_mask))
        places.append(matmul(x, direction.mT) + start)
    return (
        _with_padding(torch.cat(labels, -1), m, key_padding_mask),
        _with_padding(torch.cat(places, -2).squeeze(-1), 0, key_padding_mask),
    )


def _points(tokens: Tensor, landmarks: Tensor) -> Landmarks:
    # The nearest landmark does not depend on the scale.
    return Landmarks(landmarks, 1.0, compute_dtype(tokens, landmarks))


def _nearest(points: Landmarks, x: Tensor, landmark_padding_mask: Tensor | None) -> Tensor:
    """The number of the landmark nearest to each token of a tile."""
    closeness = points.closeness(x)
    if landmark_padding_mask is not None:
        closeness = closeness.masked_fill(landmark_padding_mask[:, None, None], -torch.inf)
    return closeness.argmax(-1)


def _with_padding(of_tokens: Tensor, value: int, mask: Tensor | None) -> Tensor:
    """A number for each token, (batch, heads, n), and ``value`` where it is padding."""
    return of_tokens if mask is None else of_tokens.masked_fill(mask[:, None], value)


def _cluster_sums(tokens: Tensor, labels: Tensor, m: int) -> tuple[Tensor, Tensor]:
    by_index = tokens.device.type == "cpu" and not is_exported()
    add_up = _sums_by_index if by_index else _sums_by_products
    return add_up(tokens, labels, m, compute_dtype(tokens))


def _sums_by_index(
    tokens: Tensor, labels: Tensor, m: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """On a CPU every index adds its rows in their order."""
    *outer, _, d = tokens.shape
    pairs = math.prod(outer)
    no_sums = sums = tokens.new_zeros(pairs * (m + 1), d, dtype=dtype)
    none_counted = counts = tokens.new_zeros(pairs * (m + 1), dtype=dtype)
    for tile in token_slices(tokens, d):
        # The last cluster of a pair is of padding.
        clusters = rows_of_pairs(labels[..., tile], m + 1)
        rows = tokens[..., tile, :].to(dtype).reshape(len(clusters), d)
        # A sum of sums over tiles rounds less than one over all rows.
        sums = sums + no_sums.index_add(0, clusters, rows)
        counts = counts + none_counted.index_add(0, clusters, rows.new_ones(len(clusters)))
    sums, counts = sums.view(*outer, m + 1, d), counts.view(*outer, m + 1, 1)
    return sums[..., :m, :].contiguous(), counts[..., :m, :].contiguous()


def _sums_by_products(
    tokens: Tensor, labels: Tensor, m: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """On a GPU indices add in any order, and products in a fixed one."""
    *outer, _, d = tokens.shape
    sums = tokens.new_zeros(*outer, m, d, dtype=dtype)
    counts = tokens.new_zeros(*outer, m, 1, dtype=dtype)
    clusters = torch.arange(m, device=tokens.device).unsqueeze(-1)
    for tile in token_slices(tokens, m + d):
        members = (labels[..., None, tile] == clusters).to(dtype)
        sums = sums + matmul(members, tokens[..., tile, :].to(dtype))
        counts = counts + members.sum(-1, keepdim=True)
    return sums, counts


_nearest_operator = torch.library.custom_op("softattn::eager_nearest_landmarks", mutates_args=())(
    _nearest_landmarks
)
_places_operator = torch.library.custom_op("softattn::eager_labels_and_places", mutates_args=())(
    _labels_and_places
)
_sums_operator = torch.library.custom_op("softattn::eager_cluster_sums", mutates_args=())(
    _cluster_sums
)


@_nearest_operator.register_fake
def _(tokens, landmarks, key_padding_mask, landmark_padding_mask):  # type: ignore[no-untyped-def]
    return tokens.new_empty(tokens.shape[:-1], dtype=torch.long)


@_places_operator.register_fake
def _(tokens, landmarks, center, direction, *masks):  # type: ignore[no-untyped-def]
    shape = tokens.shape[:-1]
    return tokens.new_empty(shape, dtype=torch.long), center.new_empty(shape)


@_sums_operator.register_fake
def _(tokens, labels, m):  # type: ignore[no-untyped-def]
    *outer, _, d = tokens.shape
    dtype = compute_dtype(tokens)
    return tokens.new_empty((*outer, m, d), dtype=dtype), tokens.new_empty(
        (*outer, m, 1), dtype=dtype
    )
