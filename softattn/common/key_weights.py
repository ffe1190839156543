"""The weights of keys that turn a row-normalised Gaussian kernel into softmax.

    softmax_j(s q · k_j) = k(q, k_j) w_j / Σ_j k(q, k_j) w_j,   w_j = exp(s ‖k_j‖² / 2),

since s ‖q‖² / 2, which is the same for all keys, cancels. Softmax does not change when all keys are
moved by a constant. In cross-attention that is their mean, so that the weights stay close to each
other: k(q, k_j − μ) = k(q + μ, k_j).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from softattn.common.precision import compute_dtype

# The largest range of log w in a head. A larger one is scaled down to it.
LARGEST_RANGE = 8.0

# (keys, scale, key_padding_mask) to w.
Weigh = Callable[[Tensor, float, Tensor | None], Tensor]


def softmax_query_and_weights(
    query: Tensor,
    key: Tensor | None,
    scale: float,
    key_padding_mask: Tensor | None,
    weigh: Weigh | None = None,
) -> tuple[Tensor, Tensor]:
    """The query, moved in cross-attention, and w over its largest, (batch, heads, n_k, 1).

    ``weigh`` computes what ``weigh_keys`` does, which is the default.
    """
    weigh = weigh or weigh_keys
    if key is None:
        return query, weigh(query, scale, key_padding_mask)
    mean = mean_key(key, key_padding_mask)
    return (query + mean).to(query.dtype), weigh(key - mean, scale, key_padding_mask)


def weigh_keys(keys: Tensor, scale: float, key_padding_mask: Tensor | None) -> Tensor:
    """w over its largest, (batch, heads, n_k, 1), of keys that were moved by their mean or not.

    Where the range of log w is over ``LARGEST_RANGE``, log w is scaled to it; padding weighs 0.
    """
    padding = None if key_padding_mask is None else key_padding_mask[:, None, :, None]
    log_weights = _log_weights(keys, scale, padding)
    least, largest = _bounds(log_weights, padding)
    tempering = LARGEST_RANGE / (largest - least).clamp(min=LARGEST_RANGE)
    weights = (tempering * (log_weights - largest)).exp()
    return weights if padding is None else weights.masked_fill(padding, 0)


def mean_key(key: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """μ, by which the query of cross-attention is moved: the mean key, (batch, heads, 1, d)."""
    padding = None if key_padding_mask is None else key_padding_mask[:, None, :, None]
    return _mean(_blanked(key, padding), padding)


def log_weight_range(
    query: Tensor, key: Tensor | None, scale: float, key_padding_mask: Tensor | None
) -> Tensor:
    """The range of log w over the keys, (batch, heads), before it is limited."""
    padding = None if key_padding_mask is None else key_padding_mask[:, None, :, None]
    keys = query if key is None else key - mean_key(key, key_padding_mask)
    least, largest = _bounds(_log_weights(keys, scale, padding), padding)
    return (largest - least)[..., 0, 0]


def _log_weights(keys: Tensor, scale: float, padding: Tensor | None) -> Tensor:
    """Log w, (batch, heads, n_k, 1), before it is limited."""
    return _blanked(keys, padding).square().sum(-1, keepdim=True) * (scale / 2)


def _blanked(keys: Tensor, padding: Tensor | None) -> Tensor:
    """The keys in the precision of the weights, with padding set to 0."""
    keys = keys.to(compute_dtype(keys))
    return keys if padding is None else keys.masked_fill(padding, 0)


def _mean(keys: Tensor, padding: Tensor | None) -> Tensor:
    """The mean over the tokens that are left, (batch, heads, 1, d), of keys whose padding is 0."""
    left = torch.ones_like(keys[:, :1, :, :1]) if padding is None else (~padding).to(keys.dtype)
    return keys.sum(2, keepdim=True) / left.sum(2, keepdim=True).clamp(min=1)


def _bounds(log_weights: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
    """The least and the largest log w without padding, (batch, heads, 1, 1), 0 without tokens."""
    if log_weights.shape[2] == 0:
        nothing = log_weights.sum(2, keepdim=True)
        return nothing, nothing
    if padding is None:
        return log_weights.amin(2, keepdim=True), log_weights.amax(2, keepdim=True)
    least = log_weights.masked_fill(padding, torch.inf).amin(2, keepdim=True)
    largest = log_weights.masked_fill(padding, -torch.inf).amax(2, keepdim=True)
    none_left = padding.all(2, keepdim=True)
    return least.masked_fill(none_left, 0), largest.masked_fill(none_left, 0)
