"""The quotient of ``normalization="token"`` and ``"softmax"``: what is restored, and its floor.

A row's weights do not change when all its terms are multiplied by one number, and neither does the
floor below, which is a share of the row's terms.
"""

import torch
from torch import Tensor

# The normalizations whose rows are divided by their sums.
QUOTIENTS = ("token", "softmax")

# The smallest magnitude of a denominator, as a share of the sum of the absolute terms of the row.
FLOOR = 0.03


def restored_diagonal(approximated: Tensor) -> Tensor:
    """What the approximated diagonal P_i A⁺ P_iᵀ lacks of the exact one, which is 1.

    It is clamped to [0, 1], so that rounding cannot grow where tokens are far apart.
    """
    return (1 - approximated).clamp(0, 1)


def restored_block(exact: Tensor, approximated: Tensor) -> Tensor:
    """``restored_diagonal`` for blocks (..., b, b) of the kernel: their exact entries less P A⁺ Pᵀ.

    What A⁺ leaves of the kernel is positive semidefinite with a diagonal of at most 1, so all its
    entries are within −1 and 1. Off the diagonal negative ones are right: to clamp them at 0 would
    leave more than the exact kernel in the row.
    """
    upper = (exact - approximated).clamp(max=1)
    own = torch.eye(exact.shape[-1], dtype=exact.dtype, device=exact.device)
    return torch.maximum(upper, own - 1)


def floored(denominator: Tensor, terms: Tensor) -> Tensor:
    """The denominator, with a magnitude of at least ``FLOOR`` times the sum of its absolute terms.

    The approximated row sum can pass through 0 where queries, keys and landmarks are far apart. It
    keeps its sign, so that constant values come back multiplied by a number from 0 to 1, and by 1
    where the floor is not met.
    Where all terms underflow, it is 1: the numerator has underflowed too, and the output is 0.
    """
    magnitude = torch.maximum(denominator.abs(), FLOOR * terms)
    signed = torch.where(denominator < 0, -magnitude, magnitude)
    return torch.where(terms > underflow(terms.dtype), signed, 1)


def underflow(dtype: torch.dtype) -> float:
    """Sums of terms up to this number count as 0, so that their inverse is finite."""
    return 1e8 * torch.finfo(dtype).tiny
