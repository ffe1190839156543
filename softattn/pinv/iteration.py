"""Newton's steps, and the gradient of an inverse that they have converged to."""

from typing import Any

import torch
from torch import Tensor

from softattn import triton as operators
from softattn.common.compiler import apply
from softattn.common.newton_schedule import newton_schedule
from softattn.common.precision import without_autocast
from softattn.common.products import matmul, scaled_sum


def newton_steps(
    target: Tensor, start: Tensor, steps: int, *, lower: float = 1.0, on_triton: bool = False
) -> Tensor:
    """The inverse of ``target`` after Newton's steps from ``start``.

    Args:
        target: A, (matrices, rows, columns).
        start: the first V, (matrices, columns, rows).
        steps: how many.
        lower: the lower end of the interval that holds the spectrum of V A; 1 for plain steps.
        on_triton: whether one kernel takes all steps, of square matrices.
    """
    if on_triton:
        return operators.newton(target, start, lower, steps)
    coefficients, unit = newton_schedule(lower, steps)
    inverse = start
    for keep, subtract in coefficients:
        product = matmul(inverse, target)
        inverse = scaled_sum(inverse, product, inverse, beta=keep, alpha=-subtract)
    return inverse if unit == 1 else inverse * unit


def step_counts(a: Tensor, count: int) -> Tensor:
    """``count`` for each matrix of ``a``."""
    return torch.full(a.shape[:-2], count, dtype=torch.int64, device=a.device)


def with_implicit_gradient(target: Tensor, inverse: Tensor, *, full_rank: bool) -> Tensor:
    """``inverse`` with the gradient that the pseudo-inverse of ``target`` has.

    Args:
        target: A, (matrices, rows, columns).
        inverse: its pseudo-inverse, (matrices, columns, rows), which needs no gradient of its own.
        full_rank: whether A is square and regular, for which the gradient has one term.
    """
    return apply(_ImplicitGradient, target, inverse, full_rank)


class _ImplicitGradient(torch.autograd.Function):
    """Gives an inverse P of A the gradient that a pseudo-inverse has.

    dA = −Pᵀ G Pᵀ + (I − A P) Gᵀ P Pᵀ + Pᵀ P Gᵀ (I − P A), whose last two terms vanish where A has
    full rank (Golub and Pereyra, 1973).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, inverse: Tensor, full_rank: bool) -> Tensor:
        return inverse.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        a, _, ctx.full_rank = inputs
        ctx.save_for_backward(a, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        a, p = ctx.saved_tensors
        with without_autocast(grad.device):
            gradient = -_chain(p.mT, grad, p.mT)
            if not ctx.full_rank:
                left = _chain(grad.mT, p, p.mT)
                right = _chain(p.mT, p, grad.mT)
                gradient = gradient + left - _chain(a, p, left) + right - _chain(right, p, a)
        return gradient, None, None


def _chain(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return matmul(matmul(a, b), c)
