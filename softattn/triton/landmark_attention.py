"""Attention through landmarks, as an operator."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from softattn.common.precision import without_autocast
from softattn.common.products import matmul
from softattn.common.quotient import FLOOR, underflow
from softattn.common.ranks import plain_sum_over_ranks
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

if TYPE_CHECKING:
    from softattn.kernels import (
        KeyTerms,
        LandmarkWeights,
        LandmarkWeightsGradient,
        QueryTerms,
        TokenGradient,
    )


@operator
def landmark_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    middle: Tensor,
    key_weights: Tensor | None,
    padding: Tensor | None,
    scale: float,
    quotient: bool,
    group: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """O = P_q M P_kᵀ V, or with ``quotient`` that over P_q M P_kᵀ 1 with the exact diagonal.

    With weights w of the keys, a quotient has w V in place of V, and w in place of 1.

    Args:
        query: Q, (batch, heads, n_q, d).
        key: K, (batch, heads, n_k, d); None in self-attention.
        value: V, (batch, heads, n_k, d_v).
        landmarks: L, (batch, heads, m, d).
        middle: M, (batch, heads, m, m), float32.
        key_weights: w, (batch, heads, n_k), float32, at most 1; None without a quotient.
        padding: (batch, n_k), int32, not 0 where a key is padding; in self-attention its output
            is 0.
        scale: s.
        quotient: whether rows are divided by their sums, with the exact diagonal in self-attention.
        group: the name of the process group of the ranks that the keys are spread over, or "".

    Returns:
        O (batch, heads, n_q, d_v) in the dtype of V, and for the gradient P_kᵀ [wV, w] and, empty
        where there is none, the denominator, the diagonal and the shift of each row of P_q.
    """
    from softattn.kernels import (
        Diagonal,
        add_stretches,
        landmarks_to_tokens,
        tokens_to_landmarks,
    )

    common: dict[str, Any] = {"rate": rate_of(scale), "center": center_of(landmarks)}
    keys = query if key is None else key
    key_weights = None if key_weights is None else key_weights.contiguous()
    partial = tokens_to_landmarks(
        landmarks,
        keys,
        value,
        padding=padding,
        key_weights=key_weights,
        with_ones=quotient,
        **common,
    )
    if group:
        partial = plain_sum_over_ranks(add_stretches(partial), group)[:, :, None]
    has_diagonal = quotient and key is None
    sums, weights, pieces = landmark_weights(
        partial, middle, value.shape[3], value.dtype, with_middle=has_diagonal
    )
    result = landmarks_to_tokens(
        query,
        landmarks,
        weights,
        dtype=value.dtype,
        padding=padding if key is None else None,
        floor=FLOOR if quotient else None,
        underflow=underflow(torch.float32),
        diagonal=None if pieces is None else Diagonal(value, pieces, key_weights),
        **common,
    )
    per_token = (result.denominator, result.diagonal, result.row_shift)
    denominator, diagonal, row_shift = (or_empty(tensor, query) for tensor in per_token)
    return result.output, sums, denominator, diagonal, row_shift


@shapes_of(landmark_attention)
def _(query, key, value, landmarks, middle, key_weights, padding, scale, quotient, group=""):  # type: ignore[no-untyped-def]
    batch, heads, n_q, _ = query.shape
    m, d_v = landmarks.shape[2], value.shape[3]
    wide = torch.float32

    def per_token(present: bool) -> Tensor:
        return query.new_empty((batch, heads, n_q) if present else (0,), dtype=wide)

    return (
        rows_like(d_v, query, value.dtype),
        query.new_empty((batch, heads, m, d_v + 1 if quotient else d_v), dtype=wide),
        per_token(quotient),
        per_token(quotient and key is None),
        per_token(quotient and key is not None),
    )


@operator
def landmark_attention_gradient(
    grad: Tensor,
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    middle: Tensor,
    key_weights: Tensor | None,
    padding: Tensor | None,
    output: Tensor,
    sums: Tensor,
    denominator: Tensor,
    diagonal: Tensor,
    row_shift: Tensor,
    scale: float,
    quotient: bool,
    group: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dQ, dK, dV, dL, dM and dw of ``landmark_attention``.

    dK is empty in self-attention, dw without weights.
    """
    from softattn.kernels import KeyTerms

    forward = _Forward(
        query=query,
        key=key,
        value=value,
        landmarks=landmarks,
        center=center_of(landmarks),
        middle=middle,
        key_weights=None if key_weights is None else key_weights.contiguous(),
        padding=padding,
        output=output,
        sums=sums,
        denominator=denominator if quotient else None,
        diagonal=diagonal if quotient and key is None else None,
        row_shift=row_shift if quotient and key is not None else None,
        scale=scale,
    )
    through = _through_output(forward, grad)
    grad_sums, grad_middle = _through_landmarks(forward, through, group)
    keys = KeyTerms(value, grad_sums, forward.key_weights, through.key_weights)
    of_query, of_keys, grad_landmarks = _through_kernel(forward, through.queries, keys)
    assert of_keys.values is not None
    return (
        of_query,
        query.new_empty(0) if key is None else of_keys.tokens,
        of_keys.values,
        grad_landmarks,
        grad_middle,
        or_empty(of_keys.key_weights, query),
    )


@shapes_of(landmark_attention_gradient)
def _(grad, query, key, value, landmarks, middle, key_weights, *rest):  # type: ignore[no-untyped-def]
    return (
        rows_like(query.shape[3], query),
        query.new_empty(0) if key is None else rows_like(key.shape[3], key),
        rows_like(value.shape[3], value),
        contiguous_like(landmarks),
        contiguous_like(middle),
        middle.new_empty(0) if key_weights is None else contiguous_like(key_weights),
    )


register_gradient(landmark_attention, landmark_attention_gradient)


class _Forward(NamedTuple):
    """Inputs and outputs of ``landmark_attention``, by their names there.

    center: (batch, heads, d), subtracted from tokens and landmarks; or None.
    denominator, diagonal, row_shift: None where the forward pass has none.
    """

    query: Tensor
    key: Tensor | None
    value: Tensor
    landmarks: Tensor
    center: Tensor | None
    middle: Tensor
    key_weights: Tensor | None
    padding: Tensor | None
    output: Tensor
    sums: Tensor
    denominator: Tensor | None
    diagonal: Tensor | None
    row_shift: Tensor | None
    scale: float


class _ThroughOutput(NamedTuple):
    """Gradients of O = P_q W, or of its quotient.

    queries: the terms of dP_q.
    weights: dW, and dz with a quotient, for each stretch of queries.
    middle: minus the diagonal's share of dM for each stretch; None without a diagonal.
    key_weights: the diagonal's share of dw; None without one or without w.
    """

    queries: "QueryTerms"
    weights: Tensor
    middle: Tensor | None
    key_weights: Tensor | None


def _through_output(forward: _Forward, grad: Tensor) -> _ThroughOutput:
    """The first pass over the queries."""
    from softattn.kernels import QueryTerms, quotient_gradient, tokens_to_landmarks

    query, value, landmarks = forward.query, forward.value, forward.landmarks
    denominator, diagonal = forward.denominator, forward.diagonal
    common: dict[str, Any] = {
        "rate": rate_of(forward.scale),
        "center": forward.center,
        "padding": forward.padding if forward.key is None else None,
    }
    # W again, and for the diagonal M + Mᵀ.
    _, weights, symmetric = landmark_weights(
        forward.sums[:, :, None],
        forward.middle,
        value.shape[3],
        value.dtype,
        with_symmetric_middle=diagonal is not None,
    )
    if denominator is None:
        partial = tokens_to_landmarks(landmarks, query, grad, **common)
        return _ThroughOutput(QueryTerms(grad, weights), partial, None, None)
    assert weights.column is not None
    through = quotient_gradient(
        query,
        landmarks,
        grad,
        forward.output,
        weights.column,
        denominator,
        floor=FLOOR,
        row_shift=forward.row_shift,
        values=None if diagonal is None else value,
        diagonal=diagonal,
        key_weights=None if diagonal is None else forward.key_weights,
        **common,
    )
    queries = QueryTerms(
        grad,
        weights,
        denominator=denominator,
        grad_denominator=through.denominator,
        diagonal=diagonal,
        grad_diagonal=through.diagonal,
        middle=symmetric,
        row_shift=forward.row_shift,
        floor=FLOOR,
    )
    return _ThroughOutput(queries, through.weights, through.middle, through.key_weights)


def _through_landmarks(
    forward: _Forward, through: _ThroughOutput, group: str
) -> "LandmarkWeightsGradient":
    """dS = Mᵀ dW, summed over the ranks of the group, and this rank's share of dM."""
    from softattn.kernels import add_stretches

    middle, sums = forward.middle, forward.sums
    d_v, dtype = forward.value.shape[3], forward.value.dtype
    of_rank = landmark_weights_gradient(through.weights, through.middle, middle, sums, d_v, dtype)
    if not group:
        return of_rank
    of_all = plain_sum_over_ranks(add_stretches(through.weights), group)[:, :, None]
    of_ranks = landmark_weights_gradient(of_all, None, middle, sums, d_v, dtype)
    return of_rank._replace(sums=of_ranks.sums)


def _through_kernel(
    forward: _Forward, queries: "QueryTerms", keys: "KeyTerms"
) -> tuple[Tensor, "TokenGradient", Tensor]:
    """The last pass over the tokens, which computes P once more for each set of them.

    Returns:
        dQ; dK, dV and dw, where dK is dQ in self-attention; dL.
    """
    from softattn.kernels import add_stretches, token_gradient

    query, key, landmarks, padding = forward.query, forward.key, forward.landmarks, forward.padding
    dtype = landmarks.dtype
    common: dict[str, Any] = {
        "rate": rate_of(forward.scale),
        "scale": forward.scale,
        "center": forward.center,
    }
    if key is None:
        of_tokens = token_gradient(
            query, landmarks, queries=queries, keys=keys, padding=padding, **common
        )
        return of_tokens.tokens, of_tokens, add_stretches(of_tokens.landmarks, dtype)
    of_queries = token_gradient(query, landmarks, queries=queries, keys=None, **common)
    of_keys = token_gradient(key, landmarks, queries=None, keys=keys, padding=padding, **common)
    through_queries = add_stretches(of_queries.landmarks)
    grad_landmarks = add_stretches(of_keys.landmarks, dtype, start=through_queries)
    return of_queries.tokens, of_keys, grad_landmarks


def landmark_weights(
    partial: Tensor,
    middle: Tensor,
    d_v: int,
    dtype: torch.dtype,
    *,
    with_middle: bool = False,
    with_symmetric_middle: bool = False,
) -> "LandmarkWeights":
    """``kernels.landmark_weights``, for any number of landmarks, features and stretches."""
    from softattn import kernels

    if kernels.fit_landmark_weights(middle.shape[-1], d_v):
        return kernels.landmark_weights(
            kernels.few_stretches(partial),
            middle,
            d_v,
            dtype,
            with_middle=with_middle,
            with_symmetric_middle=with_symmetric_middle,
        )
    sums = kernels.add_stretches(partial)
    with without_autocast(partial.device):
        weights = kernels.weights_in_pieces(matmul(middle, sums), d_v, dtype)
    if with_symmetric_middle:
        middle = middle + middle.mT
    cut = with_middle or with_symmetric_middle
    return kernels.LandmarkWeights(sums, weights, kernels.in_pieces(middle, dtype) if cut else None)


def landmark_weights_gradient(
    partial: Tensor,
    partial_middle: Tensor | None,
    middle: Tensor,
    sums: Tensor,
    d_v: int,
    dtype: torch.dtype,
) -> "LandmarkWeightsGradient":
    """``kernels.landmark_weights_gradient``, likewise."""
    from softattn import kernels

    if kernels.fit_landmark_weights(middle.shape[-1], d_v):
        if partial_middle is not None:
            partial_middle = kernels.few_stretches(partial_middle)
        return kernels.landmark_weights_gradient(
            kernels.few_stretches(partial), partial_middle, middle, sums, d_v, dtype
        )
    grad_weights = kernels.add_stretches(partial)
    with without_autocast(partial.device):
        grad_sums = matmul(middle.mT, grad_weights)
        grad_middle = matmul(grad_weights, sums.mT)
    if partial_middle is not None:
        grad_middle = kernels.add_stretches(partial_middle, start=grad_middle, subtract=True)
    return kernels.LandmarkWeightsGradient(
        kernels.weights_in_pieces(grad_sums, d_v, dtype), grad_middle
    )
