"""Nearest landmarks and sums over their tokens, as operators without a derivative."""

import torch
from torch import Tensor

from softattn.triton.registration import center_of, operator, shapes_of


@operator
def nearest_landmarks(
    tokens: Tensor,
    landmarks: Tensor,
    key_padding_mask: Tensor | None,
    landmark_padding_mask: Tensor | None,
) -> Tensor:
    """See ``Backend.nearest_landmarks``; landmarks are rounded to the dtype of the tokens."""
    from softattn import kernels

    landmarks = landmarks.to(tokens.dtype)
    return kernels.nearest_landmarks(
        tokens,
        landmarks,
        center=center_of(landmarks),
        padding=key_padding_mask,
        landmark_padding=landmark_padding_mask,
    )


@shapes_of(nearest_landmarks)
def _(tokens, landmarks, key_padding_mask, landmark_padding_mask):  # type: ignore[no-untyped-def]
    return tokens.new_empty(tokens.shape[:-1], dtype=torch.long)


@operator
def labels_and_places(
    tokens: Tensor,
    landmarks: Tensor,
    center: Tensor,
    direction: Tensor,
    key_padding_mask: Tensor | None,
    landmark_padding_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See ``Backend.labels_and_places``; landmarks are rounded to the dtype of the tokens."""
    from softattn import kernels

    # Float32 tokens lose their center; in half precision this would lose digits.
    center, is_wide = center.squeeze(2).contiguous(), tokens.dtype == torch.float32
    return kernels.labels_and_places(
        tokens,
        landmarks.to(tokens.dtype),
        direction=direction.squeeze(2).contiguous(),
        origin=None if is_wide else center,
        center=center if is_wide else None,
        padding=key_padding_mask,
        landmark_padding=landmark_padding_mask,
    )


@shapes_of(labels_and_places)
def _(tokens, landmarks, center, direction, *masks):  # type: ignore[no-untyped-def]
    shape = tokens.shape[:-1]
    return (
        tokens.new_empty(shape, dtype=torch.long),
        tokens.new_empty(shape, dtype=torch.float32),
    )


@operator
def sums_and_numbers(tokens: Tensor, labels: Tensor, m: int) -> Tensor:
    """``cluster_sums`` as one tensor, (batch, heads, m, d + 1)."""
    from softattn import kernels

    return kernels.cluster_sums(tokens, labels, m)


@shapes_of(sums_and_numbers)
def _(tokens, labels, m):  # type: ignore[no-untyped-def]
    *outer, _, d = tokens.shape
    return tokens.new_empty((*outer, m, d + 1), dtype=torch.float32)


def cluster_sums(tokens: Tensor, labels: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """See ``Backend.cluster_sums``."""
    sums = sums_and_numbers(tokens, labels, m)
    return sums[..., :-1], sums[..., -1:]
