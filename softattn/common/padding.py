"""Moves or zeroes padded tokens."""

import torch
from torch import Tensor

from softattn.common.precision import compute_dtype


def gather_padding(tokens: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Tokens (batch, heads, n, d) with padded ones moved to the mean of the others."""
    if padding_mask is None:
        return tokens
    padded = padding_mask[:, None, :, None]
    known = tokens.detach().masked_fill(padded, 0)
    number = (~padded).sum(2, keepdim=True).clamp(min=1)
    mean = known.sum(2, keepdim=True, dtype=compute_dtype(tokens)) / number
    return torch.where(padded, mean.to(tokens.dtype), tokens)


def blank_padding(tokens: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Tokens (batch, heads, n, d) with zeros for padding, also where that is NaN."""
    return tokens if padding_mask is None else tokens.masked_fill(padding_mask[:, None, :, None], 0)


def places_with_padding_last(padding_mask: Tensor) -> Tensor:
    """The new place of each token of (batch, n) when padding moves behind the rest."""
    kept = (~padding_mask).cumsum(-1)
    return torch.where(padding_mask, kept[:, -1:] + padding_mask.cumsum(-1), kept) - 1


def inverse_permutation(places: Tensor) -> Tensor:
    """The token of (batch, n) at each place, given the place of each token."""
    tokens = torch.arange(places.shape[-1], device=places.device).expand_as(places)
    return torch.empty_like(places).scatter(-1, places, tokens)
