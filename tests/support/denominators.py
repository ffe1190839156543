"""Where a quotient divides by its floor, which the oracle does not have."""

import torch
from support.strategies import QUOTIENTS
from torch import Tensor

from softattn import reference
from softattn.common.key_weights import softmax_query_and_weights

SHARE = 0.1


def denominators_stay_off_the_floor(problem) -> bool:
    """Whether the oracle, which has no floor, is what a quotient stands for."""
    if problem.normalization not in QUOTIENTS or problem.query.numel() == 0:
        return True
    if problem.keys.shape[2] == 0:
        return False
    denominator, terms = denominator_and_terms(problem)
    return bool((denominator > 2 * SHARE * terms).all())


def denominator_and_terms(problem) -> tuple[Tensor, Tensor]:
    """The row sums of the approximated weights, and the sums of their absolute terms."""
    wide = problem.to(torch.float64)
    query, weights = wide.query, torch.ones_like(wide.keys[..., :1])
    if problem.normalization == "softmax":
        query, weights = softmax_query_and_weights(query, wide.key, scale_of(wide), None)
    p = reference.gaussian_kernel(query, wide.landmarks, wide.scale)
    p_k = reference.gaussian_kernel(wide.keys, wide.landmarks, wide.scale)
    a = reference.gaussian_kernel(wide.landmarks, wide.landmarks, wide.scale)
    inverse = torch.linalg.inv(a + 0.01 * torch.eye(a.shape[-1], dtype=a.dtype))
    z = inverse @ (p_k * weights).sum(2).unsqueeze(-1)
    diagonal = torch.zeros_like(weights[..., :1, :])
    if problem.key is None:
        diagonal = weights * (1 - ((p @ inverse) * p).sum(-1, keepdim=True))
    return p @ z + diagonal, p @ z.abs() + diagonal


def scale_of(problem) -> float:
    return problem.query.shape[-1] ** -0.5 if problem.scale is None else problem.scale
