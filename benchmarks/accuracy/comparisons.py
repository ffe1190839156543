"""What ``benchmarks.accuracy`` compares with what, and the errors that it finds."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.accuracy.samplers import SAMPLERS
from benchmarks.common.arguments import DTYPES
from benchmarks.common.token_maps import (
    exact_rows,
    queries_and_values,
    relative_error,
    sampled_rows,
)
from softattn import softmax_free_attention, softmax_log_weight_range


@dataclass(frozen=True)
class Comparison:
    """An approximation, and the exact attention that it is measured against.

    normalization: of the approximation.
    exact: "gaussian", "row-normalised" (Gaussian, divided by its row sums) or "softmax".
    one_norm: whether tokens are brought to one norm. Row-normalised Gaussian attention is then
        softmax attention.
    best_scale: whether the output is first multiplied by the number that makes the error least.
    """

    title: str
    normalization: str
    exact: str
    one_norm: bool = False
    best_scale: bool = False


COMPARISONS = {
    "token": Comparison('"token" to row-normalised Gaussian', "token", "row-normalised"),
    "token, one norm": Comparison(
        '"token" to softmax, tokens of one norm', "token", "row-normalised", one_norm=True
    ),
    "none": Comparison('"none" to exact Gaussian', "none", "gaussian"),
    "landmark": Comparison(
        '"landmark", best scale, to exact Gaussian', "landmark", "gaussian", best_scale=True
    ),
    "softmax to softmax": Comparison('"softmax" to softmax', "softmax", "softmax"),
    "token to softmax": Comparison('"token" to softmax', "token", "softmax"),
}

# Those whose exact attention is softmax attention, with norms as they come.
TO_SOFTMAX = ("softmax to softmax", "token to softmax")


@dataclass(frozen=True)
class Setting:
    """Tokens, and a comparison on them.

    input: one of ``benchmarks.common.token_maps.INPUTS``.
    side: of the map; n = side².
    comparison: one of ``COMPARISONS``.
    sharpness: a factor on the queries; a large one makes the kernel sharp.
    samplers: the ways of choosing landmarks, of ``SAMPLERS``.
    """

    input: str
    side: int
    comparison: str = "token"
    sharpness: float = 1.0
    samplers: tuple[str, ...] = ("average pooling",)


@dataclass(frozen=True)
class Error:
    """The relative error of one approximation, in the Frobenius norm.

    log_weight_range: the range over the tokens of the log weights of "softmax".
    """

    input: str
    side: int
    comparison: str
    sharpness: float
    sampler: str
    landmarks: int
    error: float
    log_weight_range: float


@dataclass(frozen=True)
class Measurement:
    """How errors are measured: see the options of the same names."""

    head_dim: int
    rows: int
    dtype: str
    device: str
    seed: int


def errors_of(setting: Setting, numbers: list[int], measurement: Measurement) -> Iterator[Error]:
    """The errors with each sampler and each number of landmarks."""
    comparison = COMPARISONS[setting.comparison]
    generator = torch.Generator().manual_seed(measurement.seed)
    grid = (setting.side, setting.side)
    query, value = queries_and_values(
        setting.input, grid, heads=1, head_dim=measurement.head_dim, generator=generator
    )
    if comparison.one_norm:
        query = math.sqrt(measurement.head_dim) * F.normalize(query, dim=-1)
    query = setting.sharpness * query
    rows = sampled_rows(query.shape[2], measurement.rows, generator)
    device, dtype = measurement.device, DTYPES[measurement.dtype]
    truth = _exact_rows(query.to(device), value.to(device), rows.to(device), comparison.exact)
    log_weight_range = float(softmax_log_weight_range(query))
    for sampler in setting.samplers:
        for m in numbers:
            landmarks = SAMPLERS[sampler](query, setting.side, m, measurement.seed)
            q, v, l = (x.to(device, dtype) for x in (query, value, landmarks))  # noqa: E741
            output = softmax_free_attention(q, None, v, l, normalization=comparison.normalization)
            output = output[:, :, rows.to(device)].double()
            if comparison.best_scale:
                output = output * (output * truth).sum() / output.square().sum()
            place = (setting.input, setting.side, setting.comparison, setting.sharpness)
            yield Error(
                *place, sampler, m, relative_error(output, truth), log_weight_range=log_weight_range
            )


def _exact_rows(query: Tensor, value: Tensor, rows: Tensor, exact: str) -> Tensor:
    if exact == "softmax":
        return F.scaled_dot_product_attention(query[:, :, rows], query, value)
    return exact_rows(query, value, rows, normalize=exact == "row-normalised")
