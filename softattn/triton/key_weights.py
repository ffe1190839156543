"""The weights of keys that turn a row-normalised Gaussian kernel into softmax, as an operator."""

from typing import Any

import torch
from torch import Tensor

from softattn.common.key_weights import LARGEST_RANGE
from softattn.triton.registration import (
    operator,
    refuse_second_derivative,
    refuse_transforms,
    rows_like,
    shapes_of,
)


@operator
def key_weights(
    keys: Tensor, padding: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """w of ``softattn.common.key_weights``, without a derivative; ``with_weights`` has one.

    Args:
        keys: K, (batch, heads, n, d), in cross-attention less the mean key.
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
    grad_keys: Tensor | None,
    scale: float,
) -> Tensor:
    """dK of ``key_weights``, and ``grad_keys``, likewise, which is added to it."""
    from softattn import kernels

    return kernels.key_weights_gradient(
        grad,
        keys,
        kernels.KeyWeights(weights, logarithms, bounds),
        grad_keys=grad_keys,
        scale=scale,
        largest_range=LARGEST_RANGE,
        padding=padding,
    )


@shapes_of(key_weights_gradient)
def _(grad, keys, *rest):  # type: ignore[no-untyped-def]
    return rows_like(keys.shape[3], keys)


refuse_second_derivative(key_weights_gradient)


def with_weights(keys: Tensor, padding: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """The keys and ``key_weights``. Where both are used, one launch adds up their gradients."""
    if torch.is_grad_enabled() and keys.requires_grad:
        refuse_transforms()
        keys, weights = _WithWeights.apply(keys, padding, scale)
    else:
        weights, *_ = key_weights(keys, padding, scale)
    return keys, weights


class _WithWeights(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, keys: Tensor, padding: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        computed = key_weights(keys, padding, scale)
        ctx.scale = scale
        ctx.save_for_backward(keys, padding, *computed)
        ctx.set_materialize_grads(False)
        return keys.view_as(keys), computed[0]

    @staticmethod
    def backward(
        ctx: Any, grad_keys: Tensor | None, grad: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        if grad is None:
            return grad_keys, None, None
        return key_weights_gradient(grad, *ctx.saved_tensors, grad_keys, ctx.scale), None, None
