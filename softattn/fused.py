"""Softmax-free and exact Gaussian attention through the Triton operators."""

from collections.abc import Callable

from torch import Tensor

from softattn import triton as operators
from softattn.backends.nystrom import middle_factor
from softattn.common.padding import gather_padding
from softattn.common.precision import without_autocast


def middle_of_landmarks(
    landmarks: Tensor,
    *,
    normalization: str,
    pinv: Callable[[Tensor], Tensor],
    scale: float,
    landmark_padding_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The landmarks with their padding out of the way, and the m × m factor between them."""
    landmarks = gather_padding(landmarks, landmark_padding_mask)
    with without_autocast(landmarks.device):
        gram = operators.gaussian_kernel(landmarks, landmarks, scale)
        return landmarks, middle_factor(gram, pinv, normalization, landmark_padding_mask)


def landmark_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    middle: Tensor,
    *,
    normalization: str,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """The operator of ``softattn.softmax_free_attention``, on checked arguments."""
    output, *_ = operators.landmark_attention(
        query,
        key,
        value,
        landmarks,
        middle.float(),
        _contiguous(key_padding_mask),
        scale,
        normalization == "token",
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
    """The operator of ``softattn.gaussian_attention``, on checked arguments."""
    padding = _contiguous(key_padding_mask)
    output, _ = operators.gaussian_attention(query, key, value, padding, scale, normalize)
    return output


def _contiguous(padding_mask: Tensor | None) -> Tensor | None:
    """The kernels read masks as they lie in memory."""
    return None if padding_mask is None else padding_mask.contiguous()
