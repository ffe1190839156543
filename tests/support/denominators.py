"""Where the quotient of ``"token"`` divides by its floor, which the oracle does not have."""

from dataclasses import replace

import torch
from torch import Tensor

from softattn import reference

TOKEN_FLOOR = 1e-3


def denominators_stay_off_the_floor(problem) -> bool:
    """Whether the oracle, which has no floor, is what ``"token"`` stands for."""
    if problem.normalization != "token" or problem.query.numel() == 0:
        return True
    if problem.keys.shape[2] == 0:
        return False
    sums = replace(problem, value=torch.ones_like(problem.value[..., :1]), normalization="none")
    approximate = sums.to(torch.float64).truth()
    if problem.key is None:
        diagonal = nystroem_diagonal(problem)
        approximate = approximate + 1 - diagonal
    return bool((approximate > 2 * TOKEN_FLOOR).all())


def nystroem_diagonal(problem) -> Tensor:
    wide = problem.to(torch.float64)
    p = reference.gaussian_kernel(wide.query, wide.landmarks, wide.scale)
    a = reference.gaussian_kernel(wide.landmarks, wide.landmarks, wide.scale)
    inverse = torch.linalg.inv(a + 0.01 * torch.eye(a.shape[-1], dtype=a.dtype))
    return ((p @ inverse) * p).sum(-1, keepdim=True)
