"""The m × m factor between the two sides of the Nyström factorisation."""

from collections.abc import Callable

import torch
from torch import Tensor

# Where the quotient of "token" would divide by less, it divides by this.
TOKEN_DENOMINATOR_FLOOR = 1e-3


def middle_factor(
    gram: Tensor,
    pinv: Callable[[Tensor], Tensor],
    normalization: str,
    landmark_padding_mask: Tensor | None,
) -> Tensor:
    """A⁺, or for "landmark" D^−½ A⁺ D^−½ with D the row sums of A: (batch, heads, m, m).

    Rows and columns of padded landmarks are 0, and they have no part in the others.
    """
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
    return inverse if padded is None else inverse.masked_fill(padded, 0)
