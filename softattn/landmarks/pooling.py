"""Landmarks of keys that come as (batch, heads, tokens, features)."""

from collections.abc import Sequence

from torch import Tensor

from softattn.common.padding import inverse_permutation, places_with_padding_last
from softattn.landmarks.sampler import LandmarkSampler, check_grid


def pool_landmarks(
    sampler: LandmarkSampler,
    keys: Tensor,
    key_padding_mask: Tensor | None = None,
    *,
    grid: Sequence[int] | None = None,
    num_prefix_tokens: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """The landmarks of the keys behind the prefix, and which of them saw padding alone.

    A sequence is sampled with its padding at the end, as ``SoftmaxFreeAttention`` does.

    Args:
        sampler: what makes landmarks of tokens.
        keys: (batch, heads, n, d).
        key_padding_mask: (batch, n), True where a token is padding.
        grid: sizes whose product is n − num_prefix_tokens; one dimension by default.
        num_prefix_tokens: how many tokens before the grid have no part in the landmarks.

    Returns:
        (batch, heads, m, d), and (batch, m) or None.

    Raises:
        ValueError: the grid does not hold the keys behind the prefix.
    """
    tokens = keys[:, :, num_prefix_tokens:]
    grid = check_grid(grid, tokens.shape[2])
    padding = None
    if key_padding_mask is not None:
        padding = key_padding_mask[:, num_prefix_tokens:]
        if len(grid) == 1:
            order = inverse_permutation(places_with_padding_last(padding))
            padding = padding.gather(1, order)
            tokens = tokens.take_along_dim(order[:, None, :, None], 2)
    return sampler(tokens, grid, padding), sampler.landmark_padding_mask(grid, padding)
