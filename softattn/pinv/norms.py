"""Norms of batches of matrices, (...,) or (..., 1, 1), that are safe for zero matrices."""

import torch
from torch import Tensor

# Squarings of AᵀA: their Frobenius norm overestimates ‖A‖₂ by a factor of rank^(1/128) at most.
_SQUARINGS = 5


def frobenius(a: Tensor) -> Tensor:
    """‖A‖_F, (...,)."""
    return torch.linalg.matrix_norm(a)


def relative(difference: Tensor, whole: Tensor) -> Tensor:
    """‖difference‖ / ‖whole‖ in the Frobenius norm, 0 where the difference is 0: (...,)."""
    distance = frobenius(difference)
    return torch.where(distance == 0, 0, distance / frobenius(whole))


def largest_entry(a: Tensor) -> Tensor:
    """The largest |entry| of each matrix, 1 where it is 0 or there is none: (..., 1, 1)."""
    if a.numel() == 0:
        return torch.ones((*a.shape[:-2], 1, 1), dtype=a.dtype, device=a.device)
    return _or_one(a.abs().amax((-2, -1), keepdim=True))


def spectral_norm(a: Tensor) -> Tensor:
    """‖A‖₂ or slightly more, 1 for a zero matrix: (..., 1, 1).

    It is ‖(AᵀA)^p‖_F^(1/2p) for p = 2^5, which matrix products give. Each power is divided by its
    norm before it is squared, so none of them overflows.
    """
    power = a.mT @ a
    norm = _or_one(frobenius(power))
    total, exponent = norm.sqrt(), 0.5
    for _ in range(_SQUARINGS):
        power = power / norm[..., None, None]
        power = power @ power
        exponent /= 2
        norm = _or_one(frobenius(power))
        total = total * norm**exponent
    return total[..., None, None]


def _or_one(numbers: Tensor) -> Tensor:
    return torch.where(numbers > 0, numbers, 1)
