"""The Gaussian block, as an operator."""

import torch
from torch import Tensor

from softattn.triton.registration import (
    contiguous_like,
    operator,
    rate_of,
    register_gradient,
    shapes_of,
)


@operator
def gaussian_kernel(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """The block k(Q, K), (batch, heads, n_q, n_k), float32."""
    from softattn import kernels

    return kernels.gaussian_kernel(query, key, rate=rate_of(scale))


@shapes_of(gaussian_kernel)
def _(query, key, scale):  # type: ignore[no-untyped-def]
    return query.new_empty((*query.shape[:3], key.shape[2]), dtype=torch.float32)


@operator
def gaussian_kernel_gradient(
    grad: Tensor, query: Tensor, key: Tensor, block: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """dQ and dK of ``gaussian_kernel``."""
    from softattn import kernels

    return kernels.gaussian_kernel_gradient(query, key, block, grad, scale=scale)


@shapes_of(gaussian_kernel_gradient)
def _(grad, query, key, block, scale):  # type: ignore[no-untyped-def]
    return contiguous_like(query), contiguous_like(key)


register_gradient(gaussian_kernel, gaussian_kernel_gradient)
