"""Where a quotient divides by its floor, which the oracle does not have."""

import torch
from support.strategies import QUOTIENTS, Problem
from torch import Tensor

from softattn import reference
from softattn.common.key_weights import softmax_query_and_weights
from softattn.common.quotient import FLOOR


def denominators_stay_off_the_floor(problem) -> bool:
    """Whether the oracle, which has no floor, is what a quotient stands for."""
    if problem.normalization not in QUOTIENTS or problem.query.numel() == 0:
        return True
    if problem.keys.shape[2] == 0:
        return False
    denominator, terms = denominator_and_terms(problem)
    return bool((denominator > 2 * FLOOR * terms).all())


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
    restored = p.new_zeros(*p.shape[:-1], p_k.shape[-2])
    if problem.key is None:
        runs = problem.runs()
        in_one_run = runs.unsqueeze(-1) == runs.unsqueeze(-2)
        remainder = reference.gaussian_kernel(query, query, wide.scale) - p @ inverse @ p.mT
        restored = in_one_run * remainder * weights.mT
    of_restored = restored.sum(-1, keepdim=True), restored.abs().sum(-1, keepdim=True)
    return p @ z + of_restored[0], p @ z.abs() + of_restored[1]


def problem_across_the_floor(normalization: str) -> Problem:
    """Cross-attention whose row sums have both signs, at the floor and off it."""
    generator = torch.Generator().manual_seed(2)
    query, key, value, landmarks = (
        torch.randn(1, 2, n, d, dtype=torch.float64, generator=generator)
        for n, d in ((60, 4), (50, 4), (50, 3), (12, 4))
    )
    problem = Problem(3 * query, 3 * key, value, 0.3 * landmarks, normalization, scale=None)
    denominator, terms = denominator_and_terms(problem)
    at_floor, negative = denominator.abs() < FLOOR * terms, denominator < 0
    for kind in (at_floor & negative, at_floor & ~negative, ~at_floor & negative):
        assert kind.any()
    return problem


def scale_of(problem) -> float:
    return problem.query.shape[-1] ** -0.5 if problem.scale is None else problem.scale
