"""The backends: six operators each, with one signature."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from softattn import eager
from softattn.triton import backend as triton


@dataclass(frozen=True)
class Backend:
    """One implementation of the operators. Arguments are checked, autocast is off.

    name: what ``impl`` calls it.
    gram: ``(query, key, scale)`` to the block k(Q, K), (batch, heads, n_q, n_k).
    landmark_attention: ``(query, key, value, landmarks, middle, *, quotient, near_field, order,
        key_weights, scale, key_padding_mask, group)`` to O, (batch, heads, n_q, d_v). ``key=None``
        is self-attention; ``middle`` is what ``nystrom.middle_factor`` returns; ``quotient``
        divides by the row sums, in self-attention with the exact kernel within runs of
        ``near_field`` tokens that follow each other in ``order``; ``order``, (batch, heads, n), is
        which token comes in each place, padding last, or None where ``near_field`` is 1;
        ``key_weights``, (batch, heads, n_k, 1) or None, multiply the columns of the kernel before
        that; ``group`` names the process group of the ranks that keys and values are spread over,
        or is None.
    gaussian_attention: ``(query, key, value, *, normalize, scale, key_padding_mask)`` to O.
    nearest_landmarks: ``(tokens, landmarks, key_padding_mask, landmark_padding_mask)`` to the
        number of each token's nearest landmark that is not padding, (batch, heads, n), int64; m
        for a token that is padding, the first of those that are equally near.
    labels_and_places: ``(tokens, landmarks, center, direction, key_padding_mask,
        landmark_padding_mask)`` to what ``nearest_landmarks`` returns, and to the place of each
        token on a line, Σ (x − center) · direction, (batch, heads, n), 0 for padding. ``center``,
        which is near the tokens, ``direction``, (batch, heads, 1, d) each, and the places have the
        dtype of the arithmetic.
    cluster_sums: ``(tokens, labels, m)`` to the sum of the tokens of each label below m, (batch,
        heads, m, d), and to their number, (batch, heads, m, 1), both in the dtype of the
        arithmetic. Every run adds in the same order.
    weigh_keys: None, or ``(keys, scale, key_padding_mask)`` to the keys, to be used in their own
        place, and to what ``key_weights.weigh_keys`` returns.
    regularized_inverse: None, or ``(gram, ridge)`` to (A + ridge · I)⁻¹, (..., m, m), of a Gaussian
        Gram matrix A; None where it does not compute it.
    regularized_middle_factor: None, or ``(landmarks, *, ridge, normalized, scale,
        landmark_padding_mask)`` to what ``nystrom.middle_factor`` returns for an inverse of
        A + ridge · I, in few steps for the host; None for sizes that it does not take.
    """

    name: str
    gram: Callable[..., Tensor]
    landmark_attention: Callable[..., Tensor]
    gaussian_attention: Callable[..., Tensor]
    nearest_landmarks: Callable[..., Tensor]
    labels_and_places: Callable[..., tuple[Tensor, Tensor]]
    cluster_sums: Callable[..., tuple[Tensor, Tensor]]
    weigh_keys: Callable[..., tuple[Tensor, Tensor]] | None = None
    regularized_inverse: Callable[..., Tensor | None] | None = None
    regularized_middle_factor: Callable[..., tuple[Tensor, Tensor] | None] | None = None


EAGER = Backend(
    "eager",
    eager.gram,
    eager.landmark_attention,
    eager.gaussian_attention,
    eager.nearest_landmarks,
    eager.labels_and_places,
    eager.cluster_sums,
    regularized_inverse=eager.regularized_inverse,
)
TRITON = Backend(
    "triton",
    triton.gram,
    triton.landmark_attention,
    triton.gaussian_attention,
    triton.nearest_landmarks,
    triton.labels_and_places,
    triton.cluster_sums,
    triton.weigh_keys,
    regularized_middle_factor=triton.regularized_middle_factor,
)
