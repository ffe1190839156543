"""Attention through landmarks with a near field, as an operator."""

from typing import Any

import torch
from torch import Tensor

from softattn.common.quotient import FLOOR, underflow
from softattn.common.ranks import plain_sum_over_ranks
from softattn.triton.landmark_attention import landmark_weights, landmark_weights_gradient
from softattn.triton.registration import (
    center_of,
    contiguous_like,
    operator,
    rate_of,
    register_gradient,
    rows_like,
    shapes_of,
)


@operator
def near_field_attention(
    tokens: Tensor,
    value: Tensor,
    landmarks: Tensor,
    middle: Tensor,
    order: Tensor,
    padding: Tensor | None,
    scale: float,
    near_field: int,
    group: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """O = (P M Pᵀ V + R V) / (P M Pᵀ 1 + R 1), with R = k(X, X) − P M Pᵀ within runs.

    Args:
        tokens: X, (batch, heads, n, d).
        value: V, (batch, heads, n, d_v).
        landmarks: L, (batch, heads, m, d).
        middle: M, (batch, heads, m, m), float32.
        order: (batch, heads, n), int64, which token comes in each place; a run is ``near_field``
            tokens that follow each other. It has no gradient.
        padding: (batch, n), int32, not 0 where a token is padding; its output is 0.
        scale: s.
        near_field: tokens of a run, at least 2.
        group: the name of the process group of the ranks that the tokens are spread over, or "".
            Runs do not cross from one rank to another.

    Returns:
        O (batch, heads, n, d_v) in the dtype of V, and for the gradient Pᵀ [V, 1] and the
        denominator.
    """
    from softattn.kernels import add_stretches, near_field_output, tokens_to_landmarks

    common: dict[str, Any] = {
        "rate": rate_of(scale),
        "center": center_of(landmarks),
        "padding": padding,
    }
    partial = tokens_to_landmarks(landmarks, tokens, value, with_ones=True, **common)
    if group:
        partial = plain_sum_over_ranks(add_stretches(partial), group)[:, :, None]
    sums, weights, pieces = landmark_weights(
        partial, middle, value.shape[3], value.dtype, with_middle=True
    )
    assert pieces is not None
    output, denominator = near_field_output(
        tokens,
        landmarks,
        value,
        weights=weights,
        middle=pieces,
        order=order,
        near_field=near_field,
        floor=FLOOR,
        underflow=underflow(torch.float32),
        **common,
    )
    return output, sums, denominator


@shapes_of(near_field_attention)
def _(tokens, value, landmarks, middle, *rest):  # type: ignore[no-untyped-def]
    batch, heads, n, _ = tokens.shape
    m, d_v = landmarks.shape[2], value.shape[3]
    return (
        rows_like(d_v, tokens, value.dtype),
        tokens.new_empty((batch, heads, m, d_v + 1), dtype=torch.float32),
        tokens.new_empty((batch, heads, n), dtype=torch.float32),
    )


@operator
def near_field_attention_gradient(
    grad: Tensor,
    tokens: Tensor,
    value: Tensor,
    landmarks: Tensor,
    middle: Tensor,
    order: Tensor,
    padding: Tensor | None,
    output: Tensor,
    sums: Tensor,
    denominator: Tensor,
    scale: float,
    near_field: int,
    group: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dX, dV, dL and dM of ``near_field_attention``."""
    from softattn.kernels import add_stretches, near_field_gradient, quotient_gradient

    common: dict[str, Any] = {
        "rate": rate_of(scale),
        "floor": FLOOR,
        "center": center_of(landmarks),
        "padding": padding,
    }
    d_v = value.shape[3]
    # W again.
    _, weights, pieces = landmark_weights(
        sums[:, :, None], middle, d_v, value.dtype, with_middle=True
    )
    assert weights.column is not None and pieces is not None
    through = quotient_gradient(
        tokens, landmarks, grad, output, weights.column, denominator, **common
    )
    grad_sums, grad_middle = landmark_weights_gradient(
        through.weights, None, middle, sums, d_v, value.dtype
    )
    if group:
        of_all = plain_sum_over_ranks(add_stretches(through.weights), group)[:, :, None]
        grad_sums, _ = landmark_weights_gradient(of_all, None, middle, sums, d_v, value.dtype)
    gradient = near_field_gradient(
        tokens,
        landmarks,
        value,
        grad,
        weights=weights,
        middle=pieces,
        denominator=denominator,
        grad_denominator=through.denominator,
        grad_sums=grad_sums,
        order=order,
        near_field=near_field,
        scale=scale,
        **common,
    )
    return (
        gradient.tokens,
        gradient.values,
        add_stretches(gradient.landmarks, landmarks.dtype),
        add_stretches(gradient.middle, start=grad_middle, subtract=True),
    )


@shapes_of(near_field_attention_gradient)
def _(grad, tokens, value, landmarks, middle, *rest):  # type: ignore[no-untyped-def]
    return (
        rows_like(tokens.shape[3], tokens),
        rows_like(value.shape[3], value),
        contiguous_like(landmarks),
        contiguous_like(middle),
    )


register_gradient(near_field_attention, near_field_attention_gradient)
