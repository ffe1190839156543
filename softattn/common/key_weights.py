"""The weights of keys that turn a row-normalised Gaussian kernel into softmax.

    softmax_j(s q · k_j) = k(q, k_j) w_j / Σ_j k(q, k_j) w_j,   w_j = exp(s ‖k_j‖² / 2),

since s ‖q‖² / 2, which is the same for all keys, cancels. Softmax does not change when all keys are
moved by a constant. In cross-attention that is their mean, so that the weights stay close to each
other: k(q, k_j − μ) = k(q + μ, k_j).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from softattn.common.precision import compute_dtype
from softattn.common.ranks import stack_over_ranks, sum_over_ranks

# The largest range of log w in a head. A larger one is scaled down to it.
LARGEST_RANGE = 8.0

# (keys, scale, key_padding_mask) to the keys and w.
Weigh = Callable[[Tensor, float, Tensor | None], tuple[Tensor, Tensor]]


def softmax_query_and_weights(
    query: Tensor,
    key: Tensor | None,
    scale: float,
    key_padding_mask: Tensor | None,
    weigh: Weigh | None = None,
    group: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The query, moved in cross-attention, and w over its largest, (batch, heads, n_k, 1).

    ``weigh`` is ``Backend.weigh_keys``; ``weigh_keys`` is the default. With a ``group`` the mean
    and the weights are those among the keys of all its ranks, by ``weigh_keys`` itself.
    """
    if weigh is None or group is not None:
        weigh = partial(_keys_and_weights, group=group)
    if key is None:
        return weigh(query, scale, key_padding_mask)
    mean = mean_key(key, key_padding_mask, group)
    _, weights = weigh(key - mean, scale, key_padding_mask)
    return (query + mean).to(query.dtype), weights


def _keys_and_weights(
    keys: Tensor, scale: float, key_padding_mask: Tensor | None, group: str | None
) -> tuple[Tensor, Tensor]:
    return keys, weigh_keys(keys, scale, key_padding_mask, group)


def weigh_keys(
    keys: Tensor, scale: float, key_padding_mask: Tensor | None, group: str | None = None
) -> Tensor:
    """w over its largest, (batch, heads, n_k, 1), of keys that were moved by their mean or not.

    Where the range of log w is over ``LARGEST_RANGE``, log w is scaled to it; padding weighs 0.
    """
    padding = None if key_padding_mask is None else key_padding_mask[:, None, :, None]
    log_weights = _log_weights(keys, scale, padding)
    if group is None:
        least, largest = _bounds(log_weights, padding)
    else:
        least, largest = _bounds_over_ranks(log_weights, padding, group)
    tempering = LARGEST_RANGE / (largest - least).clamp(min=LARGEST_RANGE)
    weights = (tempering * (log_weights - largest)).exp()
    return weights if padding is None else weights.masked_fill(padding, 0)


def mean_key(key: Tensor, key_padding_mask: Tensor | None, group: str | None = None) -> Tensor:
    """μ, by which the query of cross-attention is moved: the mean key, (batch, heads, 1, d)."""
    padding = None if key_padding_mask is None else key_padding_mask[:, None, :, None]
    return _mean(_blanked(key, padding), padding, group)


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


def _mean(keys: Tensor, padding: Tensor | None, group: str | None) -> Tensor:
    """The mean over the tokens that are left, (batch, heads, 1, d), of keys whose padding is 0."""
    left = torch.ones_like(keys[:, :1, :, :1]) if padding is None else (~padding).to(keys.dtype)
    total, number = keys.sum(2, keepdim=True), left.sum(2, keepdim=True)
    if group is not None:
        number = number.expand(*total.shape[:3], 1)
        total, number = sum_over_ranks(torch.cat([total, number], -1), group).split(
            [total.shape[-1], 1], -1
        )
    return total / number.clamp(min=1)


def _bounds(log_weights: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
    """The least and the largest log w without padding, (batch, heads, 1, 1), 0 without tokens."""
    if log_weights.shape[2] == 0:
        nothing = log_weights.sum(2, keepdim=True)
        return nothing, nothing
    least, largest = _open_bounds(log_weights, padding)
    if padding is None:
        return least, largest
    none_left = padding.all(2, keepdim=True)
    return least.masked_fill(none_left, 0), largest.masked_fill(none_left, 0)


def _bounds_over_ranks(
    log_weights: Tensor, padding: Tensor | None, group: str
) -> tuple[Tensor, Tensor]:
    """``_bounds`` of the keys of all ranks; where several have the largest they share gradients."""
    # One more token, which is padding, for ranks that have none.
    log_weights = nn.functional.pad(log_weights, (0, 0, 0, 1))
    if padding is None:
        padding = torch.zeros_like(log_weights[:, :1, :-1], dtype=torch.bool)
    padding = nn.functional.pad(padding, (0, 0, 0, 1), value=True)
    bounds = torch.cat(_open_bounds(log_weights, padding), -1)
    least, largest = stack_over_ranks(bounds, group).split(1, -1)
    least, largest = least.amin(0), largest.amax(0)
    none_left = largest == -torch.inf
    return least.masked_fill(none_left, 0), largest.masked_fill(none_left, 0)


def _open_bounds(log_weights: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
    """The least and the largest log w of at least one token, infinite where all are padding."""
    if padding is None:
        return log_weights.amin(2, keepdim=True), log_weights.amax(2, keepdim=True)
    least = log_weights.masked_fill(padding, torch.inf).amin(2, keepdim=True)
    return least, log_weights.masked_fill(padding, -torch.inf).amax(2, keepdim=True)
