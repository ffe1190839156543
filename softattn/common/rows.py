"""Rows of (..., rows, d) tensors by their places."""

import math

import torch
from torch import Tensor


def rows_at(table: Tensor, places: Tensor) -> Tensor:
    """The rows of ``table`` (..., k, d) at ``places`` (..., n), as (..., n, d).

    Each row is copied as a whole, where ``torch.gather`` looks up a place for each of its elements.
    """
    *outer, k, d = table.shape
    rows = table.reshape(math.prod(outer) * k, d)
    return rows.index_select(0, rows_of_pairs(places, k)).view(*places.shape, d)


def rows_of_pairs(places: Tensor, k: int) -> Tensor:
    """Places (..., n) among the k rows of each pair, as places among the rows of all pairs."""
    *outer, _ = places.shape
    first = k * torch.arange(math.prod(outer), device=places.device).view(*outer, 1)
    return (first + places).flatten()
