"""Importing this counts softattn's operators in ``torch.utils.flop_counter.FlopCounterMode``.

It is not part of ``import softattn``, for PyTorch's counter imports Triton. A counter must be made
after it. Without it what runs in PyTorch's own operators is counted, as on CPUs, and the rest is 0.

What counts is what counts of PyTorch's own operators: the matrix products of the algorithm, 2 ·
rows · inner · columns each, with every block of the kernel that is computed again. The squared
distances between n and m tokens are a product of n · d · m. Exponentials, row sums and the pieces
into which half precision cuts a factor do not count, nor do distances by differences, which
``gaussian_kernel`` takes: so the number does not depend on dtype and device. That of 1 in [V 1],
the row sums of ``"token"``, counts as a column of V.

The arguments of each formula are the shapes of the operator's tensors and its other arguments.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from softattn import (
    eager,  # noqa: F401, they define the operators
    triton,  # noqa: F401
)

Shape = Sequence[int]


def _landmark_attention(
    query: Shape,
    key: Shape | None,
    value: Shape,
    landmarks: Shape,
    middle: Shape,
    key_weights: Shape | None,
    padding: Shape | None,
    scale: float,
    quotient: bool,
    group: str = "",
    **options: Any,
) -> int:
    pairs, n_q, n_k, m, d, columns = _sizes(query, key, value, landmarks, quotient)
    # P_k and P_kᵀ [V 1]; M S; P_q and P_q W; for the diagonal P_q M.
    passes = n_k * m * (d + columns) + m * m * columns + n_q * m * (d + columns)
    diagonal = n_q * m * m if quotient and key is None else 0
    return 2 * pairs * (passes + diagonal)


def _landmark_attention_gradient(
    grad: Shape,
    query: Shape,
    key: Shape | None,
    value: Shape,
    landmarks: Shape,
    middle: Shape,
    key_weights: Shape | None,
    padding: Shape | None,
    output: Shape,
    sums: Shape,
    denominator: Shape,
    diagonal: Shape,
    row_shift: Shape,
    scale: float,
    quotient: bool,
    group: str = "",
    **options: Any,
) -> int:
    pairs, n_q, n_k, m, d, columns = _sizes(query, key, value, landmarks, quotient)
    # P_q and dW = P_qᵀ G; M S, Mᵀ dW and dW Sᵀ.
    first = n_q * m * (d + columns) + 3 * m * m * columns
    # P, w L and wᵀ X, once where queries are keys; G Wᵀ; V dSᵀ; dV = P dS.
    blocks = n_q if key is None else n_q + n_k
    second = blocks * m * 3 * d + n_q * m * columns + n_k * m * (columns + value[3])
    # Pᵀ diag(dc) P and P (M + Mᵀ).
    diagonals = 2 * n_q * m * m if quotient and key is None else 0
    return 2 * pairs * (first + second + diagonals)


def _near_field_attention(
    tokens: Shape,
    value: Shape,
    landmarks: Shape,
    middle: Shape,
    order: Shape,
    padding: Shape | None,
    scale: float,
    near_field: int,
    group: str = "",
    **options: Any,
) -> int:
    pairs, n, _, m, d, columns = _sizes(tokens, None, value, landmarks, True)
    # P and Pᵀ [V 1]; M S; P, P W and P M.
    far = 2 * n * m * (d + columns) + m * m * columns + n * m * m
    # P again; within runs k(X, X), P M Pᵀ and R [V 1].
    near = n * m * d + n * near_field * (d + m + columns)
    return 2 * pairs * (far + near)


def _near_field_attention_gradient(
    grad: Shape,
    tokens: Shape,
    value: Shape,
    landmarks: Shape,
    middle: Shape,
    order: Shape,
    padding: Shape | None,
    output: Shape,
    sums: Shape,
    denominator: Shape,
    scale: float,
    near_field: int,
    group: str = "",
    **options: Any,
) -> int:
    pairs, n, _, m, d, columns = _sizes(tokens, None, value, landmarks, True)
    # P and dW = Pᵀ G; M S, Mᵀ dW and dW Sᵀ.
    first = n * m * (d + columns) + 3 * m * m * columns
    # As queries and as keys each: P twice, P M, M times dR P, w L and wᵀ X; within runs k(X, X),
    # P M Pᵀ, G Vᵀ, F X and dR P.
    each = n * m * (4 * d + 2 * m) + n * near_field * (2 * d + 2 * m + value[3])
    # G Wᵀ; V dSᵀ; dV = P dS + Rᵀ G; Pᵀ dR P.
    rest = n * m * (2 * columns + value[3] + m) + n * near_field * value[3]
    return 2 * pairs * (first + 2 * each + rest)


def _gaussian_attention(
    query: Shape, key: Shape | None, value: Shape, *rest: Any, **options: Any
) -> int:
    pairs, n_q, n_k, _, d, columns = _sizes(query, key, value, query, False)
    return 2 * pairs * n_q * n_k * (d + columns)


def _gaussian_attention_gradient(
    grad: Shape, query: Shape, key: Shape | None, value: Shape, *rest: Any, **options: Any
) -> int:
    pairs, n_q, n_k, _, d, columns = _sizes(query, key, value, query, False)
    # P, G Vᵀ, w K and wᵀ Q; P again and dV = Pᵀ G.
    return 2 * pairs * n_q * n_k * (4 * d + 2 * columns)


def _nearest_landmarks(tokens: Shape, landmarks: Shape, *rest: Any, **options: Any) -> int:
    batch, heads, n, d = tokens
    return 2 * batch * heads * n * landmarks[2] * d


def _labels_and_places(tokens: Shape, landmarks: Shape, *rest: Any, **options: Any) -> int:
    batch, heads, n, d = tokens
    # The direction is one more column beside the landmarks.
    return 2 * batch * heads * n * (landmarks[2] + 1) * d


def _cluster_sums(tokens: Shape, labels: Shape, m: int, **options: Any) -> int:
    batch, heads, n, d = tokens
    return 2 * batch * heads * n * m * d


def _gaussian_kernel(*rest: Any, **options: Any) -> int:
    return 0


def _gaussian_kernel_gradient(
    grad: Shape, query: Shape, key: Shape, *rest: Any, **options: Any
) -> int:
    pairs, n_q, n_k, _, d, _ = _sizes(query, key, key, query, False)
    # w K and wᵀ Q.
    return 2 * pairs * n_q * n_k * 2 * d


def _middle_factor_gradient(
    grad: Shape, grad_landmarks: Shape | None, landmarks: Shape, *rest: Any, **options: Any
) -> int:
    batch, heads, m, d = landmarks
    # M E, that times M, and H L.
    return 2 * batch * heads * (2 * m**3 + m**2 * d)


def _newton(target: Shape, start: Shape, lower: float, steps: int, **options: Any) -> int:
    matrices, m, _ = target
    # V A, and that times V.
    return 2 * matrices * m**3 * 2 * steps


def _newton_gradient(
    grad: Shape, target: Shape, start: Shape, lower: float, steps: int, **options: Any
) -> int:
    matrices, m, _ = target
    # The steps again, and five products for each.
    return 2 * matrices * m**3 * 7 * steps


def _gaussian_product(
    query: Shape, key: Shape, value: Shape, form: Shape | None, *rest: Any, **options: Any
) -> int:
    pairs, n_q, n_k, _, d, columns = _sizes(query, key, value, query, False)
    return 2 * pairs * n_q * n_k * (d + columns + (0 if form is None else n_k))


def _gaussian_product_gradient(
    query: Shape,
    key: Shape,
    value: Shape,
    form: Shape | None,
    *rest: Any,
    **options: Any,
) -> int:
    pairs, n_q, n_k, _, d, columns = _sizes(query, key, value, query, False)
    # P, w K and wᵀ Q; G Vᵀ and Pᵀ G; P (M + Mᵀ) and Pᵀ diag(h) P.
    return 2 * pairs * n_q * n_k * (3 * d + 2 * columns + (0 if form is None else 2 * n_k))


def _sizes(
    query: Shape, key: Shape | None, value: Shape, landmarks: Shape, quotient: bool
) -> tuple[int, int, int, int, int, int]:
    """Batch · heads, n_q, n_k, m, d, and the columns of V, with ones beside them or without."""
    batch, heads, n_q, d = query
    return batch * heads, n_q, value[2], landmarks[2], d, value[3] + (1 if quotient else 0)


_FORMULAS = {
    "landmark_attention": _landmark_attention,
    "landmark_attention_gradient": _landmark_attention_gradient,
    "near_field_attention": _near_field_attention,
    "near_field_attention_gradient": _near_field_attention_gradient,
    "gaussian_attention": _gaussian_attention,
    "gaussian_attention_gradient": _gaussian_attention_gradient,
    "nearest_landmarks": _nearest_landmarks,
    "labels_and_places": _labels_and_places,
    "sums_and_numbers": _cluster_sums,
    "middle_factor_gradient": _middle_factor_gradient,
    "gaussian_kernel": _gaussian_kernel,
    "gaussian_kernel_gradient": _gaussian_kernel_gradient,
    "newton": _newton,
    "newton_gradient": _newton_gradient,
    "gaussian_product": _gaussian_product,
    "gaussian_product_gradient": _gaussian_product_gradient,
}
for _name, _formula in _FORMULAS.items():
    register_flop_formula(getattr(torch.ops.softattn, _name))(_formula)  # type: ignore[arg-type]
