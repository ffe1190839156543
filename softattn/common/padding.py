"""Moves or zeroes padded tokens."""

import torch
from torch import Tensor

from softattn.common.precision import compute_dtype
from softattn.common.validation import ADVICE_ON_MASKS

# Added to a logit it gives a weight of exp(−1000), which is 0 in every dtype.
_WEIGHT_OF_ZERO = -1000.0


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


def padding_of_additive_mask(name: str, mask: Tensor) -> Tensor:
    """The padding of a mask that is added to logits, True where a token is padding.

    Args:
        name: of the mask, for the message.
        mask: floating point: 0 at tokens, −1000 or less at padding.

    Raises:
        ValueError: the mask holds other numbers.
        RuntimeError: the same in a compiled or exported graph.
    """
    padding = mask <= _WEIGHT_OF_ZERO
    is_padding_mask = ((mask == 0) | padding).all()
    message = (
        f"{name} must be 0 at tokens and {_WEIGHT_OF_ZERO:.0f} or less at padding, such as -inf: "
        "other numbers change logits, and this attention has none. Give a bool mask: "
        f"{ADVICE_ON_MASKS}"
    )
    if torch.compiler.is_compiling():
        # A Python condition would break the graph.
        torch._assert_async(is_padding_mask, message)
    elif not is_padding_mask:
        raise ValueError(message)
    return padding


def places_with_padding_last(padding_mask: Tensor) -> Tensor:
    """The new place of each token of (batch, n) when padding moves behind the rest."""
    kept = (~padding_mask).cumsum(-1)
    return torch.where(padding_mask, kept[:, -1:] + padding_mask.cumsum(-1), kept) - 1


def inverse_permutation(places: Tensor) -> Tensor:
    """The token of (batch, n) at each place, given the place of each token."""
    tokens = torch.arange(places.shape[-1], device=places.device).expand_as(places)
    return torch.empty_like(places).scatter(-1, places, tokens)
