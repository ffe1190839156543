"""The attentions that ``benchmarks.cross_attention`` compares, and what it measures."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common.token_maps import relative_error
from benchmarks.cross_attention.inputs import Case, Inputs
from softattn import (
    gaussian_kernel,
    newton_pinv,
    reference,
    softmax_free_attention,
    softmax_log_weight_range,
)

# From query, key and value to the output.
Exact = Callable[[Tensor, Tensor, Tensor], Tensor]
# The same through landmarks.
Approximation = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# A row is at the floor where values of 1 come back smaller by more than this.
_ROUNDING = 1e-3


def fixed_floor(query: Tensor, key: Tensor, value: Tensor, landmarks: Tensor) -> Tensor:
    """``"token"`` with rows of P_q as they come and denominators of at least 1e-3.

    The last column of ``value`` must be 1, so that the last column of the product is the row sums.
    """
    p_q, p_k, a = (gaussian_kernel(x, landmarks) for x in (query, key, landmarks))
    products = p_q @ (newton_pinv(a, method="minimax", ridge=0.01) @ (p_k.mT @ value))
    return products / products[..., -1:].clamp(min=1e-3)


def scaled_range(query: Tensor, key: Tensor, value: Tensor, landmarks: Tensor) -> Tensor:
    """The exact operator of ``"softmax"``, without landmarks.

    It is softmax attention where log w has a range of at most 8. Logits are smaller by what scaling
    a larger range down takes off log w.
    """
    squares = (key - key.mean(2, keepdim=True)).square().sum(-1)
    log_weights = squares / (2 * key.shape[-1] ** 0.5)
    largest_range = softmax_log_weight_range(query, key)[..., None].clamp(min=8)
    excess = log_weights * (1 - 8 / largest_range)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=-excess[:, :, None])


def _exact_gaussian(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return reference.gaussian_attention(query, key, value, normalize=True)


_token = partial(softmax_free_attention, normalization="token")
_softmax = partial(softmax_free_attention, normalization="softmax")


@dataclass(frozen=True)
class Method:
    """An approximation, and the exact attention that it is measured against."""

    title: str
    approximation: Approximation
    exact: Exact


METHODS = {
    "token": Method('"token"', _token, _exact_gaussian),
    "fixed floor": Method('"token", fixed floor', fixed_floor, _exact_gaussian),
    "softmax": Method('"softmax"', _softmax, F.scaled_dot_product_attention),
    "scaled range": Method(
        '"softmax" without landmarks', scaled_range, F.scaled_dot_product_attention
    ),
    "token to softmax": Method('"token", error to softmax', _token, F.scaled_dot_product_attention),
}


@dataclass(frozen=True)
class Outcome:
    """One method on one case.

    landmarks: what they are pooled from.
    values: their kind.
    error: ‖O − T‖ / ‖T‖ of the output O and the exact output T, in the Frobenius norm.
    norm: ‖O‖ / ‖T‖.
    at_floor: the share of the rows whose denominator is the floor.
    largest: the largest entry of O over the largest entry of the values, both in magnitude.
    log_weight_range: the range over the keys of the log weights of "softmax".
    """

    case: Case
    method: str
    landmarks: str
    values: str
    error: float
    norm: float
    at_floor: float
    largest: float
    log_weight_range: float


def outcomes_of(case: Case, inputs: Inputs, dtype: torch.dtype, device: str) -> Iterator[Outcome]:
    """The outcomes of all methods; the exact outputs are computed in float64."""
    kinds = list(inputs.values)
    value = torch.cat([*inputs.values.values(), torch.ones_like(inputs.key[..., :1])], -1)
    sizes = [inputs.values[kind].shape[-1] for kind in kinds]
    query, key, value = (x.to(device) for x in (inputs.query, inputs.key, value))
    log_weight_range = float(softmax_log_weight_range(query, key))
    exact = {method.exact: method.exact(query, key, value) for method in METHODS.values()}
    for name, method in METHODS.items():
        truths = exact[method.exact][..., :-1].split(sizes, -1)
        for source, landmarks in inputs.landmarks.items():
            tensors = (x.to(device, dtype) for x in (query, key, value, landmarks))
            output = method.approximation(*tensors).double()
            at_floor = float((output[..., -1] < 1 - _ROUNDING).double().mean())
            outputs = output[..., :-1].split(sizes, -1)
            for kind, truth, found in zip(kinds, truths, outputs, strict=True):
                yield Outcome(
                    case=case,
                    method=name,
                    landmarks=source,
                    values=kind,
                    error=relative_error(found, truth),
                    norm=float(found.norm() / truth.norm()),
                    at_floor=at_floor,
                    largest=float(found.abs().max() / inputs.values[kind].abs().max()),
                    log_weight_range=log_weight_range,
                )
