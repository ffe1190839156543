"""Newton's iteration, as an operator."""

from typing import Any

import torch
from torch import Tensor

from softattn.common.newton_schedule import newton_schedule
from softattn.common.precision import without_autocast
from softattn.common.products import matmul, scaled_sum
from softattn.triton.registration import (
    contiguous_like,
    differentiate,
    operator,
    refuse_second_derivative,
    shapes_of,
)


def most_rows_to_invert() -> int:
    """The rows of the largest matrices that the kernel takes."""
    from softattn.kernels.newton import LARGEST_SIZE

    return LARGEST_SIZE


@operator
def newton(target: Tensor, start: Tensor, lower: float, steps: int) -> Tensor:
    """``steps`` of Newton's iteration, scaled as in ``newton_schedule``, one launch for all.

    Args:
        target: A, (matrices, m, m), float32.
        start: the first V, likewise.
        lower: l, the lower end of the interval that holds the spectrum of V A.
        steps: how many, at least 1.
    """
    from softattn import kernels

    return kernels.newton(target, start, lower=lower, steps=steps)


@shapes_of(newton)
def _(target, start, lower, steps):  # type: ignore[no-untyped-def]
    return contiguous_like(target)


@operator
def newton_gradient(
    grad: Tensor, target: Tensor, start: Tensor, lower: float, steps: int
) -> tuple[Tensor, Tensor]:
    """dA and dV₀ of ``newton``, through its steps, which are taken again by matrix products."""
    with without_autocast(target.device):
        coefficients, unit = newton_schedule(lower, steps)
        inverses = [start]
        for keep, subtract in coefficients:
            v = inverses[-1]
            inverses.append(scaled_sum(v, matmul(v, target), v, beta=keep, alpha=-subtract))
        grad = grad * unit
        grad_target = torch.zeros_like(target)
        for v, (keep, subtract) in zip(inverses[-2::-1], coefficients[::-1], strict=True):
            left = matmul(v.mT, grad)
            grad_target -= subtract * matmul(left, v.mT)
            grad = keep * grad - subtract * (
                matmul(matmul(grad, v.mT), target.mT) + matmul(target.mT, left)
            )
    return grad_target, grad


@shapes_of(newton_gradient)
def _(grad, target, start, lower, steps):  # type: ignore[no-untyped-def]
    return torch.empty_like(target), torch.empty_like(start)


def _save_newton(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    target, start, ctx.lower, ctx.steps = inputs
    ctx.save_for_backward(target, start)


def _newton_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *newton_gradient(grad, *ctx.saved_tensors, ctx.lower, ctx.steps), None, None


differentiate(newton, _save_newton, _newton_backward)

refuse_second_derivative(newton_gradient)
