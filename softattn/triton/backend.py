"""The Triton operators with the signatures of a ``Backend``."""

import torch
from torch import Tensor

from softattn.common.ridge import is_above_rounding
from softattn.triton.clusters import cluster_sums
from softattn.triton.clusters import labels_and_places as _labels_and_places
from softattn.triton.clusters import nearest_landmarks as _nearest_landmarks
from softattn.triton.gaussian_attention import gaussian_attention as _exact
from softattn.triton.gaussian_kernel import gaussian_kernel as gram
from softattn.triton.key_weights import with_weights
from softattn.triton.landmark_attention import landmark_attention as _through_landmarks
from softattn.triton.middle_factor import MOST_LANDMARKS
from softattn.triton.middle_factor import middle_factor as _middle_factor
from softattn.triton.near_field import near_field_attention

__all__ = [
    "cluster_sums",
    "gaussian_attention",
    "gram",
    "labels_and_places",
    "landmark_attention",
    "nearest_landmarks",
    "regularized_middle_factor",
    "weigh_keys",
]


def regularized_middle_factor(
    landmarks: Tensor,
    *,
    ridge: float,
    normalized: bool,
    scale: float,
    landmark_padding_mask: Tensor | None,
) -> tuple[Tensor, Tensor] | None:
    """See ``Backend.regularized_middle_factor``."""
    m = landmarks.shape[2]
    if not (landmarks.numel() and m <= MOST_LANDMARKS):
        return None
    if not is_above_rounding(ridge, m, torch.float32):
        return None
    padding = _words(landmark_padding_mask)
    landmarks, middle, _ = _middle_factor(landmarks, padding, scale, ridge, normalized)
    return landmarks, middle


def landmark_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    middle: Tensor,
    *,
    quotient: bool,
    near_field: int,
    order: Tensor | None,
    key_weights: Tensor | None,
    scale: float,
    key_padding_mask: Tensor | None,
    group: str | None,
) -> Tensor:
    """See ``Backend.landmark_attention``."""
    padding = _words(key_padding_mask)
    # A pinv may return its transpose.
    middle = middle.float().contiguous()
    if order is not None:
        output, *_ = near_field_attention(
            query, value, landmarks, middle, order, padding, scale, near_field, group or ""
        )
        return output
    weights = None if key_weights is None else key_weights.squeeze(-1)
    output, *_ = _through_landmarks(
        query, key, value, landmarks, middle, weights, padding, scale, quotient, group or ""
    )
    return output


def weigh_keys(
    keys: Tensor, scale: float, key_padding_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See ``Backend.weigh_keys``."""
    keys, weights = with_weights(keys, _words(key_padding_mask), scale)
    return keys, weights.unsqueeze(-1)


def nearest_landmarks(tokens: Tensor, landmarks: Tensor, *masks: Tensor | None) -> Tensor:
    """See ``Backend.nearest_landmarks``."""
    return _nearest_landmarks(tokens, landmarks, *map(_words, masks))


def labels_and_places(
    tokens: Tensor, landmarks: Tensor, center: Tensor, direction: Tensor, *masks: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See ``Backend.labels_and_places``."""
    return _labels_and_places(tokens, landmarks, center, direction, *map(_words, masks))


def gaussian_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    *,
    normalize: bool,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """See ``Backend.gaussian_attention``."""
    output, _ = _exact(query, key, value, _words(key_padding_mask), scale, normalize)
    return output


def _words(mask: Tensor | None) -> Tensor | None:
    """A padding mask as the operators take it, in whole words."""
    return None if mask is None else mask.to(torch.int32, memory_format=torch.contiguous_format)
