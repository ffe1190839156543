"""The Gaussian block, as an operator."""

from typing import Any

import torch
from torch import Tensor

from softattn.triton.registration import contiguous_like, rate_of, refuse_second_derivative


@torch.library.custom_op("softattn::gaussian_kernel", mutates_args=())
def gaussian_kernel(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """The block k(Q, K), (batch, heads, n_q, n_k), float32."""
    from softattn import kernels

    return kernels.gaussian_kernel(query, key, rate=rate_of(scale))


@gaussian_kernel.register_fake
def _(query, key, scale):  # type: ignore[no-untyped-def]
    return query.new_empty((*query.shape[:3], key.shape[2]), dtype=torch.float32)


@torch.library.custom_op("softattn::gaussian_kernel_gradient", mutates_args=())
def gaussian_kernel_gradient(
    grad: Tensor, query: Tensor, key: Tensor, block: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """dQ and dK of ``gaussian_kernel``."""
    from softattn import kernels

    return kernels.gaussian_kernel_gradient(query, key, block, grad, scale=scale)


@gaussian_kernel_gradient.register_fake
def _(grad, query, key, block, scale):  # type: ignore[no-untyped-def]
    return contiguous_like(query), contiguous_like(key)


def _save_gaussian_kernel(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, ctx.scale = inputs
    ctx.save_for_backward(query, key, output)


def _gaussian_kernel_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *gaussian_kernel_gradient(grad, *ctx.saved_tensors, ctx.scale), None


gaussian_kernel.register_autograd(_gaussian_kernel_backward, setup_context=_save_gaussian_kernel)

gaussian_kernel_gradient.register_autograd(refuse_second_derivative)
