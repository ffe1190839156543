"""The m × m factor between the landmarks, as an operator."""

from typing import Any

import torch
from torch import Tensor

from softattn.triton.registration import (
    contiguous_like,
    differentiate,
    operator,
    rate_of,
    refuse_second_derivative,
    shapes_of,
)

# The most landmarks that the kernel takes.
MOST_LANDMARKS = 128


@operator
def middle_factor(
    landmarks: Tensor,
    padding: Tensor | None,
    scale: float,
    ridge: float,
    normalized: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(A + ε I)⁻¹ of A = k(L, L), or with ``normalized`` D^-½ (A + ε I)⁻¹ D^-½, D = diag(A 1).

    Args:
        landmarks: L, (batch, heads, m, d), m up to ``MOST_LANDMARKS``.
        padding: (batch, m), int32, not 0 where a landmark is padding; its rows and columns of the
            factor are 0.
        scale: s.
        ridge: ε.
        normalized: see above.

    Returns:
        L with padded landmarks moved to the mean of the others, the factor, and A; the last two
        (batch, heads, m, m), float32.
    """
    from softattn import kernels

    return kernels.middle_factor(
        landmarks,
        rate=rate_of(scale),
        ridge=ridge,
        normalized=normalized,
        padding=padding,
    )


@shapes_of(middle_factor)
def _(landmarks, padding, scale, ridge, normalized):  # type: ignore[no-untyped-def]
    batch, heads, m, _ = landmarks.shape
    return (
        contiguous_like(landmarks),
        landmarks.new_empty((batch, heads, m, m), dtype=torch.float32),
        landmarks.new_empty((batch, heads, m, m), dtype=torch.float32),
    )


@operator
def middle_factor_gradient(
    grad: Tensor,
    grad_landmarks: Tensor | None,
    landmarks: Tensor,
    middle: Tensor,
    gram: Tensor,
    padding: Tensor | None,
    scale: float,
    normalized: bool,
) -> Tensor:
    """dL of ``middle_factor``, from the gradients of its factor and of its landmarks."""
    from softattn import kernels

    return kernels.middle_factor_gradient(
        landmarks,
        middle,
        gram,
        grad,
        grad_landmarks,
        scale=scale,
        normalized=normalized,
        padding=padding,
    )


@shapes_of(middle_factor_gradient)
def _(grad, grad_landmarks, landmarks, *rest):  # type: ignore[no-untyped-def]
    return contiguous_like(landmarks)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, padding, ctx.scale, *_, ctx.normalized = inputs
    ctx.save_for_backward(*output, padding)
    ctx.mark_non_differentiable(output[2])


def _backward(
    ctx: Any, grad_landmarks: Tensor | None, grad: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    landmarks, middle, gram, padding = ctx.saved_tensors
    if grad is None:
        grad = torch.zeros_like(middle)
    gradient = middle_factor_gradient(
        grad, grad_landmarks, landmarks, middle, gram, padding, ctx.scale, ctx.normalized
    )
    return gradient, *(None,) * 4


differentiate(middle_factor, _save, _backward)
refuse_second_derivative(middle_factor_gradient)
