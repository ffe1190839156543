"""Error over time: what a user buys with more landmarks, k-means and near fields."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.accuracy.comparisons import Measurement
from benchmarks.common.arguments import DTYPES
from benchmarks.common.timing import WarmCall, time_in_turns, warm_up
from benchmarks.common.token_maps import (
    exact_rows,
    queries_and_values,
    relative_error,
    sampled_rows,
)
from softattn import AvgPoolLandmarks, KMeansLandmarks, LandmarkSampler, softmax_free_attention

_ROUNDS = 5


@dataclass(frozen=True)
class Way:
    """A way to spend time: how landmarks are chosen, and the near field."""

    sampler: Callable[[int], LandmarkSampler]
    options: dict[str, int] = field(default_factory=dict)


WAYS = {
    "average pooling": Way(AvgPoolLandmarks),
    "two steps of k-means": Way(KMeansLandmarks),
    "k-means, near field of 16": Way(KMeansLandmarks, {"near_field": 16}),
    "k-means, near field of 64": Way(KMeansLandmarks, {"near_field": 64}),
}


@dataclass(frozen=True)
class Cost:
    """The error and the time of one call of "token", landmarks included.

    input: one of ``benchmarks.common.token_maps.INPUTS``.
    side: of the map.
    way: one of ``WAYS``.
    error: relative, in the Frobenius norm, to row-normalised Gaussian attention.
    seconds: of the forward pass for one head, the median.
    """

    input: str
    side: int
    way: str
    landmarks: int
    error: float
    seconds: float


def costs_of(name: str, side: int, numbers: list[int], measurement: Measurement) -> Iterator[Cost]:
    """The costs of all ways and numbers of landmarks on one input, timed in turns."""
    generator = torch.Generator().manual_seed(measurement.seed)
    query, value = queries_and_values(
        name, (side, side), heads=1, head_dim=measurement.head_dim, generator=generator
    )
    rows = sampled_rows(side**2, measurement.rows, generator)
    truth = exact_rows(query, value, rows, normalize=True)
    to = {"device": measurement.device, "dtype": DTYPES[measurement.dtype]}
    query, value = query.to(**to), value.to(**to)
    errors: dict[tuple[str, int], float] = {}
    calls: dict[str, WarmCall] = {}
    for way in WAYS:
        for m in numbers:
            call = _call(WAYS[way], m, side, query, value)
            output = call()[:, :, rows.to(query.device)].double()
            errors[way, m] = relative_error(output, truth.to(output.device))
            calls[f"{way} {m}"] = warm_up(call, measurement.device)
    timings = time_in_turns(calls, rounds=_ROUNDS, seconds=2.0)
    for (way, m), error in errors.items():
        yield Cost(name, side, way, m, error, timings[f"{way} {m}"].median)


def _call(way: Way, m: int, side: int, query: Tensor, value: Tensor) -> Callable[[], Tensor]:
    sampler = way.sampler(m)

    @torch.no_grad()
    def call() -> Tensor:
        landmarks = sampler(query, (side, side))
        return softmax_free_attention(query, None, value, landmarks, **way.options)  # type: ignore[arg-type]

    return call
