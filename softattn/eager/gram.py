"""The Gaussian block by differences, with its gradient."""

from typing import Any

import torch
from torch import Tensor

from softattn.common.compiler import apply, is_exported
from softattn.common.precision import compute_dtype, without_autocast
from softattn.common.products import matmul


def gram(query: Tensor, key: Tensor, scale: float, *, shifted: bool = False) -> Tensor:
    """k(Q, K) from differences: (batch, heads, n_q, n_k), float32, or float64 for float64.

    ``shifted``: each row is divided by its largest entry, which counts as a constant.
    """
    dtype = compute_dtype(query, key)
    block: Tensor = apply(_Gram, query.to(dtype), key.to(dtype), scale, shifted)
    return block


class _Gram(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(query: Tensor, key: Tensor, scale: float, shifted: bool) -> Tensor:
        if is_exported():
            # Other formats have no operator for it.
            distance = (query.unsqueeze(-2) - key.unsqueeze(-3)).square().sum(-1)
        else:
            exact = "donot_use_mm_for_euclid_dist"
            distance = torch.cdist(query, key, compute_mode=exact)
            distance.mul_(distance)
        if shifted and distance.shape[-1]:
            distance = distance - distance.amin(-1, keepdim=True)
        return distance.mul_(-scale / 2).exp_()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        query, key, ctx.scale, _ = inputs
        ctx.save_for_backward(query, key, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        query, key, block = ctx.saved_tensors
        with without_autocast(grad.device):
            w = -ctx.scale * block * grad
            dq = w.sum(-1, keepdim=True) * query - matmul(w, key)
            dk = w.sum(-2).unsqueeze(-1) * key - matmul(w.mT, query)
        return dq, dk, None, None
