"""The queries, keys, values and landmarks that ``benchmarks.cross_attention`` measures on."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.common.token_maps import grid_of, photograph, pixel_tokens
from softattn import AvgPoolLandmarks

# What the queries and keys of a case are, by its source.
SOURCES = {
    "independent": "independent normal queries and keys",
    "photographs": "tokens of two photographs, one projection",
    "two projections": "tokens of two photographs, a projection each",
    "latents": "independent normal queries over the tokens of a photograph",
}


@dataclass(frozen=True)
class Case:
    """The queries and keys of one measurement.

    source: one of ``SOURCES``.
    queries, keys: how many there are.
    query_spread, key_spread: the root mean variance of their features.
    """

    source: str
    queries: int
    keys: int
    query_spread: float
    key_spread: float


@dataclass(frozen=True)
class Inputs:
    """Tensors in float64: query, key and the landmarks, (1, 1, n, d), and values by their kind.

    "independent" values are normal. "linear" values are a random linear map of the keys, with a
    mean variance of 1, plus a constant for each feature.
    """

    query: Tensor
    key: Tensor
    values: dict[str, Tensor]
    landmarks: dict[str, Tensor]


def inputs_of(case: Case, head_dim: int, number: int, seed: int) -> Inputs:
    """The inputs of a case, with ``number`` landmarks pooled from the keys, or half from them."""
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, dtype=torch.float64, generator=generator)
    query_grid, key_grid = grid_of(case.queries), grid_of(case.keys)
    query, key = normal(case.queries, head_dim), normal(case.keys, head_dim)
    if case.source != "independent":
        tokens = pixel_tokens(photograph(key_grid), head_dim)
        projection = normal(tokens.shape[1], head_dim)
        key = tokens @ projection
        if case.source != "latents":
            tokens = pixel_tokens(photograph(query_grid, "flower.jpg"), head_dim)
            own = normal(*projection.shape)
            query = tokens @ (own if case.source == "two projections" else projection)
    query, key = (
        spread * x / x.var(0).mean().sqrt()
        for x, spread in ((query, case.query_spread), (key, case.key_spread))
    )
    linear = key @ normal(head_dim, head_dim)
    values = {
        "independent": normal(case.keys, head_dim),
        "linear": linear / linear.var(0).mean().sqrt() + normal(head_dim),
    }
    query, key = query[None, None], key[None, None]
    from_queries = number // 2
    both = [
        AvgPoolLandmarks(number - from_queries)(key, key_grid),
        AvgPoolLandmarks(from_queries)(query, query_grid),
    ]
    return Inputs(
        query=query,
        key=key,
        values={kind: value[None, None] for kind, value in values.items()},
        landmarks={
            "keys": AvgPoolLandmarks(number)(key, key_grid),
            "queries and keys": torch.cat(both, 2),
        },
    )
