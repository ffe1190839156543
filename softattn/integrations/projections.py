"""Projections of a softmax attention, as they are carried over."""

import torch
from torch import Tensor, nn


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear map with copies of ``weight`` (out, in) and ``bias`` (out,).

    It is trained where they were.
    """
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
    linear.weight = _copy(weight)
    if bias is not None:
        linear.bias = _copy(bias)
    return linear


def tied(of_queries: Tensor, of_keys: Tensor) -> Tensor:
    """What queries and keys share where each had its own: the mean."""
    return torch.lerp(of_queries, of_keys, 0.5)


def _copy(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
