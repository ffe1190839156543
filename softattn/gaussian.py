"""The Gaussian kernel between two sets of tokens, written out."""

from typing import Any

import torch
from torch import Tensor

from softattn import triton as operators
from softattn.backends.selection import runs_on_triton
from softattn.common.compiler import apply, is_exported
from softattn.common.precision import compute_dtype, promoted_under_autocast, without_autocast
from softattn.common.validation import check_scale, check_tokens


def gaussian_kernel(
    query: Tensor, key: Tensor, *, scale: float | None = None, impl: str = "auto"
) -> Tensor:
    """The block k(x, y) = exp(−s ‖x − y‖² / 2) of all pairs (SOFT, NeurIPS 2021).

    Distances come from differences, not from products, so the block of a set with itself has
    ones on its diagonal, is symmetric and is positive semidefinite up to rounding.

    Args:
        query: (batch, heads, n_q, d), floating point.
        key: (batch, heads, n_k, d), same dtype and device.
        scale: s, 1/√d by default.
        impl: ``"eager"``, ``"triton"`` or ``"auto"``, see ``softmax_free_attention``.

    Returns:
        (batch, heads, n_q, n_k) in float32, or float64 for float64 inputs. It does exist in
        memory: for attention over many tokens use ``softmax_free_attention``.

    Raises:
        TypeError: a tensor is not floating point, or dtypes differ.
        ValueError: shapes do not fit, devices differ, or ``impl`` cannot run.
    """
    check_tokens(query=query, key=key)
    query, key = promoted_under_autocast(query, key)
    scale = check_scale(scale, query)
    if runs_on_triton(impl, query):
        return operators.gaussian_kernel(query, key, scale)
    return gram_block(query, key, scale)


def gram_block(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """``gaussian_kernel`` without the checks."""
    dtype = compute_dtype(query, key)
    block: Tensor = apply(_GramBlock, query.to(dtype), key.to(dtype), scale)
    return block


class _GramBlock(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(query: Tensor, key: Tensor, scale: float) -> Tensor:
        if is_exported():
            # Other formats have no operator for it.
            difference = query.unsqueeze(-2) - key.unsqueeze(-3)
            return difference.square().sum(-1).mul(-scale / 2).exp()
        exact = "donot_use_mm_for_euclid_dist"
        distance = torch.cdist(query, key, compute_mode=exact)
        return distance.mul_(distance).mul_(-scale / 2).exp_()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        query, key, ctx.scale = inputs
        ctx.save_for_backward(query, key, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        query, key, block = ctx.saved_tensors
        with without_autocast(grad.device):
            w = -ctx.scale * block * grad
            dq = w.sum(-1, keepdim=True) * query - w @ key
            dk = w.sum(-2).unsqueeze(-1) * key - w.mT @ query
        return dq, dk, None
