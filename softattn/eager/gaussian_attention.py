"""Exact Gaussian attention, tile by tile."""

import torch
from torch import Tensor

from softattn.common.padding import blank_padding, gather_padding
from softattn.eager.product import gaussian_product, nearest_key_shift


def gaussian_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    *,
    normalize: bool,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """See ``Backend.gaussian_attention``."""
    is_self = key is None
    query, key, value = _without_padding(query, key, value, key_padding_mask)
    if normalize:
        # A query that is its own key has a row sum of at least 1; another may underflow.
        shift = None if is_self else nearest_key_shift(query, key, scale, key_padding_mask)
        value_and_one = _with_ones(value, key_padding_mask)
        sums, _ = gaussian_product(query, key, value_and_one, scale=scale, shift=shift)
        denominator = sums[..., -1:]
        output = sums[..., :-1] / denominator.masked_fill(denominator == 0, 1)
    else:
        output, _ = gaussian_product(query, key, value, scale=scale)
    output = output.to(value.dtype)
    return blank_padding(output, key_padding_mask) if is_self else output


def _without_padding(
    query: Tensor, key: Tensor | None, value: Tensor, padding_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values without what padding holds; self-attention keeps queries = keys."""
    keys = gather_padding(query if key is None else key, padding_mask)
    return keys if key is None else query, keys, blank_padding(value, padding_mask)


def _with_ones(value: Tensor, padding_mask: Tensor | None) -> Tensor:
    """The values and a column of ones, 0 for padding."""
    ones = blank_padding(torch.ones_like(value[..., :1]), padding_mask)
    return torch.cat([value, ones], -1)
