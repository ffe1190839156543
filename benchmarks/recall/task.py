"""Associative recall: sequences of key–value pairs, and queries for half of them, shuffled.

A pair is one token. It has a key, a random vector, and a value, one of ``VALUES``. A query is a
token with the key of a pair and no value, and the value of that pair is to be found. Keys never
come twice, so nothing can be learned by heart.
"""

from typing import NamedTuple

import torch
from torch import Tensor

KEY_FEATURES = 32
VALUES = 64
NO_VALUE = VALUES
NO_TARGET = -100


class Sequences(NamedTuple):
    """A batch.

    keys: (batch, n, KEY_FEATURES).
    values: (batch, n), ``NO_VALUE`` for a query.
    targets: (batch, n), the value that a query asks for, ``NO_TARGET`` for a pair.
    """

    keys: Tensor
    values: Tensor
    targets: Tensor


def tokens_of(pairs: int) -> int:
    """n: the pairs, and a query for every other one."""
    return pairs + pairs // 2


def draw(batch: int, pairs: int, generator: torch.Generator) -> Sequences:
    """Random sequences of ``tokens_of(pairs)`` tokens in random order."""
    queries = pairs // 2
    keys = torch.randn(batch, pairs, KEY_FEATURES, generator=generator)
    values = torch.randint(VALUES, (batch, pairs), generator=generator)
    asked = _permutations(batch, pairs, generator)[:, :queries]
    all_keys = torch.cat([keys, _rows(keys, asked)], 1)
    all_values = torch.cat([values, torch.full_like(asked, NO_VALUE)], 1)
    targets = torch.cat([torch.full_like(values, NO_TARGET), values.gather(1, asked)], 1)
    order = _permutations(batch, pairs + queries, generator)
    return Sequences(_rows(all_keys, order), all_values.gather(1, order), targets.gather(1, order))


def _permutations(batch: int, length: int, generator: torch.Generator) -> Tensor:
    return torch.rand(batch, length, generator=generator).argsort(-1)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
