"""Tokens in another order, as the near field of the eager path takes them."""

from typing import Any

import torch
from torch import Tensor

from softattn.common.compiler import apply
from softattn.common.padding import inverse_permutation
from softattn.common.rows import rows_of_pairs


def order_of_rows(order: Tensor) -> tuple[Tensor, Tensor]:
    """An order (batch, heads, n) and its inverse as orders of all rows, (batch · heads · n)."""
    n = order.shape[-1]
    return rows_of_pairs(order, n), rows_of_pairs(inverse_permutation(order), n)


def permuted(tokens: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Tokens in another order; ``permuted(result, inverse, order)`` puts them back.

    Args:
        tokens: (batch, heads, n, d).
        order: (batch · heads · n), which row comes in each place, within each head.
        inverse: (batch · heads · n), the place of each row. The gradient is put back with it, where
            that of PyTorch's indexing would add up rows one by one.
    """
    rows: Tensor = apply(_Permuted, tokens.flatten(0, 2), order, inverse)
    return rows.view(tokens.shape)


def padding_in_order(padding_mask: Tensor | None) -> Tensor | None:
    """The padding (batch, n) of tokens in order of their content, where it comes last."""
    if padding_mask is None:
        return None
    places = torch.arange(padding_mask.shape[-1], device=padding_mask.device)
    return places >= (~padding_mask).sum(-1, keepdim=True)


class _Permuted(torch.autograd.Function):
    """Rows (all, d) in another order (all)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        return rows.index_select(0, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _, order, inverse = inputs
        ctx.save_for_backward(order, inverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return apply(_Permuted, grad, inverse, order), None, None
