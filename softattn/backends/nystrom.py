"""The Nyström factorisation around a backend: the m × m factor, and the weights of the keys."""

from collections.abc import Callable

import torch
from torch import Tensor

from softattn.backends.backend import Backend
from softattn.backends.content_order import content_order
from softattn.common.key_weights import softmax_query_and_weights
from softattn.common.padding import gather_padding
from softattn.common.quotient import QUOTIENTS


def middle_factor(
    backend: Backend,
    landmarks: Tensor,
    *,
    normalization: str,
    pinv: Callable[[Tensor], Tensor],
    ridge: float | None,
    scale: float,
    landmark_padding_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The landmarks with padding moved away, and A⁺ of A = k(L, L).

    For ``"landmark"`` A⁺ is divided on both sides by the square roots of the row sums of A. Where
    there is a ``ridge``, ε, ``pinv`` is (A + ε I)⁻¹ with the gradient that it has, and the backend
    may compute it in its own way.

    Returns:
        L, (batch, heads, m, d), and the factor, (batch, heads, m, m), whose rows and columns of
        padded landmarks are 0. Padded landmarks do not influence the others.

    Raises:
        ValueError: ``pinv`` returns another shape than it gets.
    """
    if ridge is not None and backend.regularized_middle_factor is not None:
        factor = backend.regularized_middle_factor(
            landmarks,
            ridge=ridge,
            normalized=normalization == "landmark",
            scale=scale,
            landmark_padding_mask=landmark_padding_mask,
        )
        if factor is not None:
            return factor
    landmarks = gather_padding(landmarks, landmark_padding_mask)
    gram = backend.gram(landmarks, landmarks, scale)
    padded = None
    if landmark_padding_mask is not None:
        padded = landmark_padding_mask[:, None, :, None] | landmark_padding_mask[:, None, None, :]
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        gram = torch.where(padded, eye, gram)
    inverse = None
    if ridge is not None and backend.regularized_inverse is not None:
        inverse = backend.regularized_inverse(gram, ridge)
    if inverse is None:
        inverse = pinv(gram)
    if inverse.shape != gram.shape:
        raise ValueError(
            f"pinv must return inverses of the shape of its input, {tuple(gram.shape)}, got "
            f"{tuple(inverse.shape)}"
        )
    if normalization == "landmark":
        root = gram.sum(-1, keepdim=True).rsqrt()
        inverse = root * inverse * root.mT
    return landmarks, inverse if padded is None else inverse.masked_fill(padded, 0)


def landmark_attention(
    backend: Backend,
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    middle: Tensor,
    *,
    normalization: str,
    near_field: int,
    scale: float,
    key_padding_mask: Tensor | None,
    landmark_padding_mask: Tensor | None,
    group: str | None = None,
) -> Tensor:
    """O, (batch, heads, n_q, d_v), of a call whose ``middle_factor`` is known."""
    order = None
    if near_field > 1:
        order = content_order(backend, query, landmarks, key_padding_mask, landmark_padding_mask)
    weights = None
    if normalization == "softmax":
        query, weights = softmax_query_and_weights(
            query, key, scale, key_padding_mask, backend.weigh_keys, group
        )
    return backend.landmark_attention(
        query,
        key,
        value,
        landmarks,
        middle,
        quotient=normalization in QUOTIENTS,
        near_field=near_field,
        order=order,
        key_weights=weights,
        scale=scale,
        key_padding_mask=key_padding_mask,
        group=group,
    )
