"""Exact Gaussian attention, as an operator."""

from typing import Any

import torch
from torch import Tensor

from softattn.triton.registration import (
    center_of,
    contiguous_like,
    operator,
    or_empty,
    rate_of,
    register_gradient,
    rows_like,
    shapes_of,
)


@operator
def gaussian_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    padding: Tensor | None,
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """k(Q, K) V, or with ``normalize`` that over the row sums of k(Q, K).

    Returns:
        (batch, heads, n_q, d_v) in the dtype of V, and log₂ of the row sums, (batch, heads, n_q),
        or nothing.
    """
    from softattn.kernels import landmarks_to_tokens

    keys = query if key is None else key
    result = landmarks_to_tokens(
        query,
        keys,
        value,
        rate=rate_of(scale),
        center=center_of(keys),
        dtype=value.dtype,
        padding=padding if key is None else None,
        landmark_padding=padding,
        normalize=normalize,
    )
    return result.output, or_empty(result.row_shift, query)


@shapes_of(gaussian_attention)
def _(query, key, value, padding, scale, normalize):  # type: ignore[no-untyped-def]
    batch, heads, n_q, _ = query.shape
    return (
        rows_like(value.shape[3], query, value.dtype),
        query.new_empty((batch, heads, n_q) if normalize else (0,), dtype=torch.float32),
    )


@operator
def gaussian_attention_gradient(
    grad: Tensor,
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    padding: Tensor | None,
    output: Tensor,
    row_shift: Tensor,
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK and dV of ``gaussian_attention``; in self-attention dQ has both and dK is empty."""
    from softattn.kernels import QueryTerms, add_stretches, token_gradient, tokens_to_landmarks

    keys = query if key is None else key
    common: dict[str, Any] = {
        "rate": rate_of(scale),
        "center": center_of(keys),
        "padding": padding if key is None else None,
        "landmark_padding": padding,
    }
    queries = QueryTerms(grad, value)
    if normalize:
        # The row sums' term, −G_i · O_i.
        grad_sums = -(grad.float() * output.float()).sum(-1)
        queries = QueryTerms(grad, value, grad_denominator=grad_sums, row_shift=row_shift)
    grad_query, partial, *_ = token_gradient(
        query, keys, queries=queries, keys=None, scale=scale, **common
    )
    partial_values = tokens_to_landmarks(keys, query, grad, row_shift=queries.row_shift, **common)
    grad_value = add_stretches(partial_values, value.dtype)
    if key is None:
        grad_query = add_stretches(partial, query.dtype, start=grad_query)
        return grad_query, query.new_empty(0), grad_value
    return grad_query, add_stretches(partial, key.dtype), grad_value


@shapes_of(gaussian_attention_gradient)
def _(grad, query, key, value, *rest):  # type: ignore[no-untyped-def]
    return (
        contiguous_like(query) if key is None else rows_like(query.shape[3], query),
        query.new_empty(0) if key is None else contiguous_like(key),
        contiguous_like(value),
    )


register_gradient(gaussian_attention, gaussian_attention_gradient)
