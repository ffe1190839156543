"""Tokens of a batch in the layer's order: prefix, then grid, then padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softattn.common.padding import inverse_permutation, places_with_padding_last
from softattn.common.ranks import own_prefix
from softattn.common.validation import check_mask
from softattn.landmarks.sampler import check_dimensions, check_grid


@dataclass(frozen=True)
class TokenBatch:
    """Tokens on a grid, with zeros for padding and, in a sequence, the padding moved to the end.

    features: (batch, n, embed_dim).
    grid: sizes whose product is n − num_prefix_tokens, or of a sequence that ranks share that of
        all their tokens.
    padding: (batch, n), True where a token is padding, or None.
    places: (batch, n), the new place of each token of the sequence, or None if none has moved.
    """

    features: Tensor
    grid: tuple[int, ...]
    num_prefix_tokens: int
    padding: Tensor | None
    places: Tensor | None

    @property
    def grid_padding(self) -> Tensor | None:
        """The padding (batch, n − num_prefix_tokens) of the grid."""
        return None if self.padding is None else self.padding[:, self.num_prefix_tokens :]

    def restore(self, output: Tensor) -> Tensor:
        """Puts a result for the tokens, (batch, n, …), back in their places, 0 for padding."""
        if self.padding is not None:
            output = output.masked_fill(self.padding.unsqueeze(-1), 0)
        if self.places is None:
            return output
        return output.gather(1, self.places.unsqueeze(-1).expand_as(output))


def arrange_tokens(
    x: Tensor,
    grid: Sequence[int] | None,
    key_padding_mask: Tensor | None,
    num_prefix_tokens: int,
    group: str | None = None,
) -> TokenBatch:
    """Makes a ``TokenBatch`` of (batch, n, embed_dim) or (batch, *grid, embed_dim).

    With a ``group`` they are this rank's part, and the first rank has the prefix; whether the parts
    make a grid is checked over all ranks, see ``landmarks.parts``.

    Raises:
        TypeError: the mask is not bool.
        ValueError: the grid, the mask or the prefix do not fit ``x``.
    """
    if x.ndim > 3:
        if grid is not None and tuple(grid) != tuple(x.shape[1:-1]):
            raise ValueError(
                f"grid {tuple(grid)} is not that of the map {tuple(x.shape)}; leave it out"
            )
        if num_prefix_tokens:
            raise ValueError(
                "a map (batch, *grid, embed_dim) has no place for prefix tokens; give (batch, "
                "tokens, embed_dim) and grid=... with num_prefix_tokens"
            )
        grid = x.shape[1:-1]
        if isinstance(key_padding_mask, Tensor) and key_padding_mask.shape == x.shape[:-1]:
            key_padding_mask = key_padding_mask.flatten(1)
    x = x.flatten(1, -2)
    batch, n, _ = x.shape
    if not 0 <= num_prefix_tokens <= (n if group is None else num_prefix_tokens):
        raise ValueError(
            f"num_prefix_tokens must lie between 0 and the {n} tokens, got {num_prefix_tokens}"
        )
    num_prefix_tokens = own_prefix(num_prefix_tokens, n, group)
    if group is None:
        grid = check_grid(grid, n - num_prefix_tokens)
    else:
        grid = check_dimensions((n - num_prefix_tokens,) if grid is None else grid)
    check_mask("key_padding_mask", key_padding_mask, (batch, n), x.device)
    places = None
    if key_padding_mask is not None:
        if len(grid) == 1:
            in_grid = torch.arange(n, device=x.device) >= num_prefix_tokens
            places = places_with_padding_last(key_padding_mask & in_grid)
            order = inverse_permutation(places)
            key_padding_mask = key_padding_mask.gather(1, order)
            x = x.gather(1, order.unsqueeze(-1).expand_as(x))
        x = x.masked_fill(key_padding_mask.unsqueeze(-1), 0)
    return TokenBatch(x, grid, num_prefix_tokens, key_padding_mask, places)
