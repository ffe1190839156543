"""The Triton operators with the signatures of a ``Backend``."""

from torch import Tensor

from softattn.triton.clusters import cluster_sums, nearest_landmarks
from softattn.triton.gaussian_attention import gaussian_attention as _exact
from softattn.triton.gaussian_kernel import gaussian_kernel as gram
from softattn.triton.landmark_attention import landmark_attention as _through_landmarks

__all__ = [
    "cluster_sums",
    "gaussian_attention",
    "gram",
    "landmark_attention",
    "nearest_landmarks",
]


def landmark_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    middle: Tensor,
    *,
    quotient: bool,
    near_field: int,
    key_weights: Tensor | None,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """See ``Backend.landmark_attention``."""
    padding = _contiguous(key_padding_mask)
    weights = None if key_weights is None else key_weights.squeeze(-1)
    output, *_ = _through_landmarks(
        query, key, value, landmarks, middle.float(), weights, padding, scale, quotient
    )
    return output


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
    output, _ = _exact(query, key, value, _contiguous(key_padding_mask), scale, normalize)
    return output


def _contiguous(padding_mask: Tensor | None) -> Tensor | None:
    """The mask as the kernels read it."""
    return None if padding_mask is None else padding_mask.contiguous()
