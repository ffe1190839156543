"""The weights of keys that turn a row-normalised Gaussian kernel into softmax, as an operator."""

from typing import Any

import torch
from torch import Tensor

from softattn.common.key_weights import LARGEST_RANGE
from softattn.triton.registration import (
    differentiate,
    operator,
    refuse_second_derivative,
    rows_like,
    shapes_of,
)


@operator
def key_weights(
    keys: Tensor, padding: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """w of ``softattn.common.key_weights`` for keys (batch, heads, n, d).

    Args:
        keys: K, in cross-attention less the mean key.
        padding: (batch, n), int32, not 0 where a key is padding; its weight is 0.
        scale: s.

    Returns:
        w, (batch, heads, n), float32, and for the gradient log w and its bounds.
    """
    from softattn import kernels

    return kernels.key_weights(keys, scale=scale, largest_range=LARGEST_RANGE, padding=padding)


@shapes_of(key_weights)
def _(keys, padding, scale):  # type: ignore[no-untyped-def]
    batch, heads, n, _ = keys.shape
    weights = keys.new_empty((batch, heads, n), dtype=torch.float32)
    bounds = keys.new_empty((batch, heads, 2), dtype=torch.float32)
    return weights, torch.empty_like(weights), bounds


@operator
def key_weights_gradient(
    grad: Tensor,
    keys: Tensor,
    padding: Tensor | None,
    weights: Tensor,
    logarithms: Tensor,
    bounds: Tensor,
    scale: float,
) -> Tensor:
    """dK of ``key_weights``."""
    from softattn import kernels

    return kernels.key_weights_gradient(
        grad,
        keys,
        kernels.KeyWeights(weights, logarithms, bounds),
        scale=scale,
        largest_range=LARGEST_RANGE,
        padding=padding,
    )


@shapes_of(key_weights_gradient)
def _(grad, keys, *rest):  # type: ignore[no-untyped-def]
    return rows_like(keys.shape[3], keys)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    keys, padding, ctx.scale = inputs
    ctx.save_for_backward(keys, padding, *output)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    return key_weights_gradient(grad, *ctx.saved_tensors, ctx.scale), None, None


differentiate(key_weights, _save, _backward)
refuse_second_derivative(key_weights_gradient)
