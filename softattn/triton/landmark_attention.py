"""Attention through landmarks, as an operator."""

from typing import Any

import torch
from torch import Tensor

from softattn.common.precision import without_autocast
from softattn.common.products import matmul
from softattn.common.quotient import FLOOR, underflow
from softattn.triton.registration import (
    center_of,
    contiguous_like,
    or_empty,
    rate_of,
    register_gradient,
)


@torch.library.custom_op("softattn::landmark_attention", mutates_args=())
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
        padding: (batch, n_k), True where a key is padding; in self-attention its output is 0.
        scale: s.
        quotient: whether rows are divided by their sums, with the exact diagonal in self-attention.

    Returns:
        O (batch, heads, n_q, d_v) in the dtype of V, and for the gradient P_kᵀ [wV, w] and, empty
        where there is none, the denominator, the diagonal and the shift of each row of P_q.
    """
    from softattn.kernels import Diagonal, landmarks_to_tokens, tokens_to_landmarks

    common: dict[str, Any] = {"rate": rate_of(scale), "center": center_of(landmarks)}
    keys = query if key is None else key
    key_weights = None if key_weights is None else key_weights.contiguous()
    sums = tokens_to_landmarks(
        landmarks,
        keys,
        value,
        padding=padding,
        key_weights=key_weights,
        with_ones=quotient,
        **common,
    )
    result = landmarks_to_tokens(
        query,
        landmarks,
        matmul(middle, sums),
        dtype=value.dtype,
        padding=padding if key is None else None,
        floor=FLOOR if quotient else None,
        underflow=underflow(torch.float32),
        diagonal=Diagonal(value, middle, key_weights) if quotient and key is None else None,
        **common,
    )
    per_token = (result.denominator, result.diagonal, result.row_shift)
    denominator, diagonal, row_shift = (or_empty(tensor, query) for tensor in per_token)
    return result.output, sums, denominator, diagonal, row_shift


@landmark_attention.register_fake
def _(query, key, value, landmarks, middle, key_weights, padding, scale, quotient):  # type: ignore[no-untyped-def]
    batch, heads, n_q, _ = query.shape
    m, d_v = landmarks.shape[2], value.shape[3]
    wide = torch.float32

    def per_token(present: bool) -> Tensor:
        return query.new_empty((batch, heads, n_q) if present else (0,), dtype=wide)

    return (
        value.new_empty((batch, heads, n_q, d_v)),
        query.new_empty((batch, heads, m, d_v + 1 if quotient else d_v), dtype=wide),
        per_token(quotient),
        per_token(quotient and key is None),
        per_token(quotient and key is not None),
    )


@torch.library.custom_op("softattn::landmark_attention_gradient", mutates_args=())
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dQ, dK, dV, dL, dM and dw of ``landmark_attention``.

    dK is empty in self-attention, dw without weights.
    """
    from softattn.kernels import (
        KeyTerms,
        QueryTerms,
        quotient_gradient,
        token_gradient,
        tokens_to_landmarks,
    )

    common: dict[str, Any] = {"rate": rate_of(scale), "center": center_of(landmarks)}
    is_self = key is None
    query_padding = padding if is_self else None
    key_weights = None if key_weights is None else key_weights.contiguous()
    own_key_weights = None
    with without_autocast(query.device):
        weights = matmul(middle, sums)
        # dW = P_qᵀ G, through the quotient where there is one.
        if quotient:
            through = quotient_gradient(
                query,
                landmarks,
                grad,
                output,
                weights[..., -1].contiguous(),
                denominator,
                floor=FLOOR,
                row_shift=None if is_self else row_shift,
                padding=query_padding,
                values=value if is_self else None,
                diagonal=diagonal if is_self else None,
                key_weights=key_weights if is_self else None,
                **common,
            )
            grad_weights, of_diagonal = through.weights, through.middle
            own_key_weights = through.key_weights
            queries = QueryTerms(
                grad,
                weights,
                denominator=denominator,
                grad_denominator=through.denominator,
                diagonal=diagonal if is_self else None,
                grad_diagonal=through.diagonal,
                middle=middle + middle.mT if is_self else None,
                row_shift=None if is_self else row_shift,
                floor=FLOOR,
            )
        else:
            queries = QueryTerms(grad, weights)
            of_diagonal = None
            grad_weights = tokens_to_landmarks(
                landmarks, query, grad, padding=query_padding, **common
            )
        # dS = Mᵀ dW and dM = dW Sᵀ.
        grad_sums = matmul(middle.mT, grad_weights)
        grad_middle = matmul(grad_weights, sums.mT)
        if of_diagonal is not None:
            grad_middle += of_diagonal
        # dQ, dK, dV and dL, from one recomputation of P for each set of tokens.
        keys = KeyTerms(value, grad_sums, key_weights, own_key_weights)
        common["scale"] = scale
        if key is None:
            of_tokens = token_gradient(
                query, landmarks, queries=queries, keys=keys, padding=padding, **common
            )
            grad_query, grad_key = of_tokens.tokens, query.new_empty(0)
        else:
            of_queries = token_gradient(query, landmarks, queries=queries, keys=None, **common)
            of_tokens = token_gradient(
                key, landmarks, queries=None, keys=keys, padding=padding, **common
            )
            of_tokens.landmarks.add_(of_queries.landmarks)
            grad_query, grad_key = of_queries.tokens, of_tokens.tokens
    assert of_tokens.values is not None
    return (
        grad_query,
        grad_key,
        of_tokens.values,
        of_tokens.landmarks.to(landmarks.dtype),
        grad_middle,
        or_empty(of_tokens.key_weights, query),
    )


@landmark_attention_gradient.register_fake
def _(grad, query, key, value, landmarks, middle, key_weights, *rest):  # type: ignore[no-untyped-def]
    return (
        contiguous_like(query),
        query.new_empty(0) if key is None else contiguous_like(key),
        contiguous_like(value),
        contiguous_like(landmarks),
        contiguous_like(middle),
        middle.new_empty(0) if key_weights is None else contiguous_like(key_weights),
    )


register_gradient(landmark_attention, landmark_attention_gradient)
