"""The error and the time of "token" by the way to spend time: landmarks, k-means, near fields."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.arguments import DTYPES
from benchmarks.common.timing import WarmCall, time_in_turns, warm_up
from benchmarks.common.token_maps import (
    exact_rows,
    queries_and_values,
    relative_error,
    sampled_rows,
)
from softattn import AvgPoolLandmarks, KMeansLandmarks, LandmarkSampler, softmax_free_attention


@dataclass(frozen=True)
class Way:
    """A way to spend time: how landmarks are chosen, and further options of the operator."""

    sampler: Callable[[int], LandmarkSampler]
    options: dict[str, Any] = field(default_factory=dict)


WAYS = {
    "average pooling": Way(AvgPoolLandmarks),
    "k-means": Way(KMeansLandmarks),
    "k-means, near 16": Way(KMeansLandmarks, {"near_field": 16}),
    "k-means, near 64": Way(KMeansLandmarks, {"near_field": 64}),
}


@dataclass(frozen=True)
class Measurement:
    """How errors and times are measured: see the options of the same names."""

    side: int
    heads: int
    head_dim: int
    rows: int
    rounds: int
    seconds_per_cell: float
    dtype: str
    device: str
    seed: int


@dataclass(frozen=True)
class Point:
    """The error and the time of one call, landmarks included.

    input: one of ``benchmarks.common.token_maps.INPUTS``.
    way: one of ``WAYS``.
    error: relative, in the Frobenius norm, to row-normalised Gaussian attention.
    seconds: of the forward pass, the median.
    """

    input: str
    way: str
    landmarks: int
    error: float
    seconds: float


def points_of(name: str, numbers: list[int], measurement: Measurement) -> Iterator[Point]:
    """The points of all ways and numbers of landmarks on one input, timed in turns."""
    side, device = measurement.side, measurement.device
    generator = torch.Generator().manual_seed(measurement.seed)
    query, value = queries_and_values(
        name,
        (side, side),
        heads=measurement.heads,
        head_dim=measurement.head_dim,
        generator=generator,
    )
    rows = sampled_rows(side**2, measurement.rows, generator)
    truth = exact_rows(query, value, rows, normalize=True)
    query, value = (x.to(device, DTYPES[measurement.dtype]) for x in (query, value))
    errors: dict[tuple[str, int], float] = {}
    calls: dict[str, WarmCall] = {}
    for way in WAYS:
        for m in numbers:
            call = _call(WAYS[way], m, side, query, value)
            errors[way, m] = relative_error(call().cpu()[:, :, rows], truth)
            calls[f"{way} {m}"] = warm_up(call, device)
    timings = time_in_turns(calls, rounds=measurement.rounds, seconds=measurement.seconds_per_cell)
    for (way, m), error in errors.items():
        yield Point(name, way, m, error, timings[f"{way} {m}"].median)


def _call(way: Way, m: int, side: int, query: Tensor, value: Tensor) -> Callable[[], Tensor]:
    sampler = way.sampler(m)

    @torch.no_grad()
    def call() -> Tensor:
        landmarks = sampler(query, (side, side))
        return softmax_free_attention(query, None, value, landmarks, **way.options)

    return call
