"""Softmax-free and exact Gaussian attention in PyTorch operations, on any device."""

from collections.abc import Callable

import torch
from torch import Tensor

from softattn.gaussian import gram_block
from softattn.precision import compute_dtype, without_autocast
from softattn.streaming import gaussian_product, nearest_key_shift

TOKEN_DENOMINATOR_FLOOR = 1e-3


def softmax_free_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    *,
    normalization: str,
    pinv: Callable[[Tensor], Tensor],
    scale: float,
    key_padding_mask: Tensor | None,
    landmark_padding_mask: Tensor | None,
) -> Tensor:
    """The operator of ``softattn.softmax_free_attention``, on checked arguments."""
    # 1. Padded tokens hold nothing, whatever was in them.
    is_self = key is None
    query, key, value = _without_padding(query, key, value, key_padding_mask)
    landmarks = landmarks.to(compute_dtype(query, value))
    landmarks = _gather_padding(landmarks, landmark_padding_mask)
    with without_autocast(query.device):
        # 2. A⁺, in which a padded landmark has no part.
        gram = gram_block(landmarks, landmarks, scale)
        inverse = _middle_factor(gram, pinv, normalization, landmark_padding_mask)
        # 3. S = P_kᵀ V, and u = P_kᵀ 1 beside it.
        if normalization == "token":
            value_and_one = _with_ones(value, key_padding_mask)
            sums, _ = gaussian_product(landmarks, key, value_and_one, scale=scale)
        else:
            sums, _ = gaussian_product(landmarks, key, value, scale=scale)
        # 4. O = P_q A⁺ S, for "token" over P_q A⁺ u, both with the diagonal put back.
        weights = inverse @ sums
        form = inverse if normalization == "token" and is_self else None
        output, quadratic = gaussian_product(query, landmarks, weights, scale=scale, form=form)
        if normalization == "token":
            if quadratic is not None:
                # 0 to 1 but for rounding, which must not grow where tokens are far apart.
                output = torch.addcmul(output, (1 - quadratic).clamp(0, 1), value_and_one)
            output = output[..., :-1] / output[..., -1:].clamp(min=TOKEN_DENOMINATOR_FLOOR)
    output = output.to(value.dtype)
    return _blank(output, key_padding_mask) if is_self else output


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
    return _blank(output, key_padding_mask) if is_self else output


def _middle_factor(
    gram: Tensor,
    pinv: Callable[[Tensor], Tensor],
    normalization: str,
    landmark_padding_mask: Tensor | None,
) -> Tensor:
    """A⁺, or for "landmark" D^−½ A⁺ D^−½ with D the row sums of A."""
    padded = None
    if landmark_padding_mask is not None:
        padded = landmark_padding_mask[:, None, :, None] | landmark_padding_mask[:, None, None, :]
        gram = torch.where(padded, torch.eye(gram.shape[-1]).to(gram), gram)
    inverse = pinv(gram)
    if inverse.shape != gram.shape:
        raise ValueError(
            f"pinv must return inverses of the shape of its input, {tuple(gram.shape)}, got "
            f"{tuple(inverse.shape)}"
        )
    if normalization == "landmark":
        root = gram.sum(-1, keepdim=True).rsqrt()
        inverse = root * inverse * root.mT
    return inverse if padded is None else inverse.masked_fill(padded, 0)


def _without_padding(
    query: Tensor, key: Tensor | None, value: Tensor, padding_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values in which padding says nothing; self-attention keeps them one."""
    keys = _gather_padding(query if key is None else key, padding_mask)
    return keys if key is None else query, keys, _blank(value, padding_mask)


def _with_ones(value: Tensor, padding_mask: Tensor | None) -> Tensor:
    """The values and a column of ones, 0 for padding, whose sum is what divides them."""
    ones = _blank(torch.ones_like(value[..., :1]), padding_mask)
    return torch.cat([value, ones], -1)


def _gather_padding(tokens: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Padded tokens moved to the mean of the others, where they are in nobody's way."""
    if padding_mask is None:
        return tokens
    padded = padding_mask[:, None, :, None]
    known = tokens.detach().masked_fill(padded, 0)
    number = (~padded).sum(2, keepdim=True).clamp(min=1)
    mean = known.sum(2, keepdim=True, dtype=compute_dtype(tokens)) / number
    return torch.where(padded, mean.to(tokens.dtype), tokens)


def _blank(tokens: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Zeros at padded tokens, also where they held NaN."""
    return tokens if padding_mask is None else tokens.masked_fill(padding_mask[:, None, :, None], 0)
