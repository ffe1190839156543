"""What comes before the tokens, once for all backends: the landmarks and the m × m factor."""

from collections.abc import Callable

import torch
from torch import Tensor

from softattn.backends.backend import Backend
from softattn.common.padding import gather_padding


def middle_factor(
    backend: Backend,
    landmarks: Tensor,
    *,
    normalization: str,
    pinv: Callable[[Tensor], Tensor],
    scale: float,
    landmark_padding_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The landmarks with padding moved away, and A⁺, or D^−½ A⁺ D^−½ for ``"landmark"``.

    D are the row sums of A = k(L, L).

    Returns:
        L, (batch, heads, m, d), and the factor, (batch, heads, m, m), whose rows and columns of
        padded landmarks are 0. Padded landmarks do not influence the others.

    Raises:
        ValueError: ``pinv`` returns another shape than it gets.
    """
    landmarks = gather_padding(landmarks, landmark_padding_mask)
    gram = backend.gram(landmarks, landmarks, scale)
    padded = None
    if landmark_padding_mask is not None:
        padded = landmark_padding_mask[:, None, :, None] | landmark_padding_mask[:, None, None, :]
        gram = torch.where(padded, torch.eye(gram.shape[-1]).to(gram), gram)
    inverse = pinv(gram)
    if inverse.shape != gram.shape:
        raise ValueError(
            f"pinv must return inverses of the shape of its input, {tuple(gram.shape)}, got "
            f"{tuple(inverse.shape)}"
        )
    if normalization == "landmark":
        root = gram.sum(-1, keepdim=True).rsqrt()
        inverse = root * inverse * root.mT
    return landmarks, inverse if padded is None else inverse.masked_fill(padded, 0)
