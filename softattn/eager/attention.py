"""Softmax-free and exact Gaussian attention in PyTorch operations, on any device."""

from collections.abc import Callable

import torch
from torch import Tensor

from softattn.backends.nystrom import TOKEN_DENOMINATOR_FLOOR, middle_factor
from softattn.common.padding import blank_padding, gather_padding
from softattn.common.precision import compute_dtype, without_autocast
from softattn.eager.product_operator import gaussian_product, nearest_key_shift
from softattn.gaussian import gram_block


def middle_of_landmarks(
    landmarks: Tensor,
    *,
    normalization: str,
    pinv: Callable[[Tensor], Tensor],
    scale: float,
    landmark_padding_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The landmarks with their padding out of the way, and the m × m factor between them."""
    landmarks = gather_padding(landmarks.to(compute_dtype(landmarks)), landmark_padding_mask)
    with without_autocast(landmarks.device):
        gram = gram_block(landmarks, landmarks, scale)
        return landmarks, middle_factor(gram, pinv, normalization, landmark_padding_mask)


def landmark_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    middle: Tensor,
    *,
    normalization: str,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """The operator of ``softattn.softmax_free_attention``, on checked arguments."""
    # 1. Padded tokens hold nothing, whatever was in them.
    is_self = key is None
    query, key, value = _without_padding(query, key, value, key_padding_mask)
    with without_autocast(query.device):
        # 2. S = P_kᵀ V, and u = P_kᵀ 1 beside it.
        if normalization == "token":
            value_and_one = _with_ones(value, key_padding_mask)
            sums, _ = gaussian_product(landmarks, key, value_and_one, scale=scale)
        else:
            sums, _ = gaussian_product(landmarks, key, value, scale=scale)
        # 3. O = P_q A⁺ S, for "token" over P_q A⁺ u, both with the diagonal put back.
        weights = middle @ sums
        form = middle if normalization == "token" and is_self else None
        output, quadratic = gaussian_product(query, landmarks, weights, scale=scale, form=form)
        if normalization == "token":
            if quadratic is not None:
                # 0 to 1 but for rounding, which must not grow where tokens are far apart.
                output = torch.addcmul(output, (1 - quadratic).clamp(0, 1), value_and_one)
            output = output[..., :-1] / output[..., -1:].clamp(min=TOKEN_DENOMINATOR_FLOOR)
    output = output.to(value.dtype)
    return blank_padding(output, key_padding_mask) if is_self else output


def gaussian_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    *,
    normalize: bool,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """The operator of ``softattn.gaussian_attention``, on checked arguments."""
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
    """Queries, keys and values in which padding says nothing; self-attention keeps them one."""
    keys = gather_padding(query if key is None else key, padding_mask)
    return keys if key is None else query, keys, blank_padding(value, padding_mask)


def _with_ones(value: Tensor, padding_mask: Tensor | None) -> Tensor:
    """The values and a column of ones, 0 for padding, whose sum is what divides them."""
    ones = blank_padding(torch.ones_like(value[..., :1]), padding_mask)
    return torch.cat([value, ones], -1)
