"""The Triton kernels as PyTorch operators: schemas, shapes, gradients.

Every operator is known to ``torch.compile`` and ``torch.export`` by its schema and its shapes. What
they compute stands in ``softattn.kernels``, which is imported at the first call. Gradients are
operators of their own, and those have none: a second derivative needs ``impl="eager"``.
"""

import math
from typing import Any

import torch
from torch import Tensor

from softattn.centering import median_token
from softattn.middle import TOKEN_DENOMINATOR_FLOOR
from softattn.precision import without_autocast


@torch.library.custom_op("softattn::landmark_attention", mutates_args=())
def landmark_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    middle: Tensor,
    padding: Tensor | None,
    scale: float,
    quotient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """O = P_q M P_kᵀ V, or with ``quotient`` that over P_q M P_kᵀ 1, the exact diagonal put back.

    Args:
        query: Q, (batch, heads, n_q, d).
        key: K, (batch, heads, n_k, d); None in self-attention.
        value: V, (batch, heads, n_k, d_v).
        landmarks: L, (batch, heads, m, d).
        middle: M, (batch, heads, m, m), float32.
        padding: (batch, n_k), True where a key is padding; in self-attention it answers 0.
        scale: s.
        quotient: whether it is the operator of ``normalization="token"``.

    Returns:
        O (batch, heads, n_q, d_v) in the dtype of V, and for the gradient P_kᵀ [V 1], the
        denominator and the diagonal, empty where there is none.
    """
    from softattn.kernels import Diagonal, landmarks_to_tokens, tokens_to_landmarks

    common: dict[str, Any] = {"rate": _rate(scale), "center": _center(landmarks)}
    with without_autocast(query.device):
        keys = query if key is None else key
        sums = tokens_to_landmarks(
            landmarks, keys, value, padding=padding, with_ones=quotient, **common
        )
        heard = landmarks_to_tokens(
            query,
            landmarks,
            middle @ sums,
            dtype=value.dtype,
            padding=padding if key is None else None,
            floor=TOKEN_DENOMINATOR_FLOOR if quotient else None,
            diagonal=Diagonal(value, middle) if quotient and key is None else None,
            **common,
        )
    return heard.output, sums, _or_empty(heard.denominator), _or_empty(heard.diagonal)


@landmark_attention.register_fake
def _(query, key, value, landmarks, middle, padding, scale, quotient):  # type: ignore[no-untyped-def]
    batch, heads, n_q, _ = query.shape
    m, d_v = landmarks.shape[2], value.shape[3]
    wide = torch.float32
    per_token = query.new_empty((batch, heads, n_q), dtype=wide)
    none = query.new_empty((0,), dtype=wide)
    return (
        value.new_empty((batch, heads, n_q, d_v)),
        query.new_empty((batch, heads, m, d_v + 1 if quotient else d_v), dtype=wide),
        per_token if quotient else none,
        torch.empty_like(per_token) if quotient and key is None else torch.empty_like(none),
    )


@torch.library.custom_op("softattn::landmark_attention_gradient", mutates_args=())
def landmark_attention_gradient(
    grad: Tensor,
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    middle: Tensor,
    padding: Tensor | None,
    output: Tensor,
    sums: Tensor,
    denominator: Tensor,
    diagonal: Tensor,
    scale: float,
    quotient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dQ, dK, dV, dL and dM of ``landmark_attention``; dK is empty in self-attention."""
    from softattn.kernels import (
        AsKeys,
        AsQueries,
        quotient_gradient,
        token_gradient,
        tokens_to_landmarks,
    )

    common: dict[str, Any] = {"rate": _rate(scale), "center": _center(landmarks)}
    is_self = key is None
    query_padding = padding if is_self else None
    with without_autocast(query.device):
        # dW = P_qᵀ G, through the quotient where there is one.
        weights = middle @ sums
        queries = AsQueries(grad, weights)
        grad_middle: Tensor | None = None
        if quotient:
            through = quotient_gradient(
                query,
                landmarks,
                grad,
                output,
                denominator,
                floor=TOKEN_DENOMINATOR_FLOOR,
                padding=query_padding,
                values=value if is_self else None,
                diagonal=diagonal if is_self else None,
                **common,
            )
            grad_weights, grad_middle = through.weights, through.middle
            queries = AsQueries(
                grad,
                weights,
                denominator,
                through.denominator,
                diagonal if is_self else None,
                through.diagonal,
                middle + middle.mT if is_self else None,
            )
        else:
            grad_weights = tokens_to_landmarks(
                landmarks, query, grad, padding=query_padding, **common
            )
        # dS = Mᵀ dW and dM = dW Sᵀ.
        grad_sums = middle.mT @ grad_weights
        from_weights = grad_weights @ sums.mT
        grad_middle = from_weights if grad_middle is None else grad_middle.add_(from_weights)
        # dQ, dK, dV and dL, from one recomputation of P for each set of tokens.
        keys = AsKeys(value, grad_sums)
        common["scale"] = scale
        if key is None:
            grad_query, grad_value, grad_landmarks = token_gradient(
                query, landmarks, queries=queries, keys=keys, padding=padding, **common
            )
            grad_key = query.new_empty(0)
        else:
            grad_query, _, of_queries = token_gradient(
                query, landmarks, queries=queries, keys=None, **common
            )
            grad_key, grad_value, of_keys = token_gradient(
                key, landmarks, queries=None, keys=keys, padding=padding, **common
            )
            grad_landmarks = of_queries.add_(of_keys)
    assert grad_value is not None
    return grad_query, grad_key, grad_value, grad_landmarks.to(landmarks.dtype), grad_middle


@landmark_attention_gradient.register_fake
def _(grad, query, key, value, landmarks, middle, *rest):  # type: ignore[no-untyped-def]
    return (
        _contiguous_like(query),
        query.new_empty(0) if key is None else _contiguous_like(key),
        _contiguous_like(value),
        _contiguous_like(landmarks),
        _contiguous_like(middle),
    )


def _save_landmark_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale, ctx.quotient = inputs
    ctx.save_for_backward(*tensors, *output)


def _landmark_attention_backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    grad_query, grad_key, grad_value, grad_landmarks, grad_middle = landmark_attention_gradient(
        grad, *ctx.saved_tensors, ctx.scale, ctx.quotient
    )
    is_self = ctx.saved_tensors[1] is None
    return (
        grad_query,
        None if is_self else grad_key,
        grad_value,
        grad_landmarks,
        grad_middle,
        None,
        None,
        None,
    )


landmark_attention.register_autograd(
    _landmark_attention_backward, setup_context=_save_landmark_attention
)


@torch.library.custom_op("softattn::gaussian_attention", mutates_args=())
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
    heard = landmarks_to_tokens(
        query,
        keys,
        value,
        rate=_rate(scale),
        center=_center(keys),
        dtype=value.dtype,
        padding=padding if key is None else None,
        landmark_padding=padding,
        normalize=normalize,
    )
    return heard.output, _or_empty(heard.row_shift)


@gaussian_attention.register_fake
def _(query, key, value, padding, scale, normalize):  # type: ignore[no-untyped-def]
    batch, heads, n_q, _ = query.shape
    return (
        value.new_empty((batch, heads, n_q, value.shape[3])),
        query.new_empty((batch, heads, n_q) if normalize else (0,), dtype=torch.float32),
    )


@torch.library.custom_op("softattn::gaussian_attention_gradient", mutates_args=())
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
    """dQ, dK and dV of ``gaussian_attention``; dK is empty in self-attention, dQ both."""
    from softattn.kernels import AsQueries, token_gradient, tokens_to_landmarks

    keys = query if key is None else key
    query_padding = padding if key is None else None
    common: dict[str, Any] = {
        "rate": _rate(scale),
        "center": _center(keys),
        "padding": query_padding,
    }
    queries = AsQueries(grad, value)
    shift = None
    if normalize:
        # The share of the row sums, −G_i · O_i.
        grad_sums = -(grad.float() * output.float()).sum(-1)
        queries = AsQueries(grad, value, grad_denominator=grad_sums, row_shift=row_shift)
        shift = row_shift
    grad_query, _, grad_key = token_gradient(
        query, keys, queries=queries, keys=None, scale=scale, landmark_padding=padding, **common
    )
    grad_value = tokens_to_landmarks(
        keys, query, grad, row_shift=shift, landmark_padding=padding, **common
    )
    grad_value = grad_value.to(value.dtype)
    if key is None:
        return (grad_key.add_(grad_query)).to(query.dtype), query.new_empty(0), grad_value
    return grad_query, grad_key.to(key.dtype), grad_value


@gaussian_attention_gradient.register_fake
def _(grad, query, key, value, *rest):  # type: ignore[no-untyped-def]
    return (
        _contiguous_like(query),
        query.new_empty(0) if key is None else _contiguous_like(key),
        _contiguous_like(value),
    )


def _save_gaussian_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale, ctx.normalize = inputs
    ctx.save_for_backward(*tensors, *output)


def _gaussian_attention_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    grad_query, grad_key, grad_value = gaussian_attention_gradient(
        grad, *ctx.saved_tensors, ctx.scale, ctx.normalize
    )
    is_self = ctx.saved_tensors[1] is None
    return grad_query, None if is_self else grad_key, grad_value, None, None, None


gaussian_attention.register_autograd(
    _gaussian_attention_backward, setup_context=_save_gaussian_attention
)


@torch.library.custom_op("softattn::gaussian_kernel", mutates_args=())
def gaussian_kernel(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """The block k(Q, K), (batch, heads, n_q, n_k), float32."""
    from softattn import kernels

    return kernels.gaussian_kernel(query, key, rate=_rate(scale))


@gaussian_kernel.register_fake
def _(query, key, scale):  # type: ignore[no-untyped-def]
    return query.new_empty((*query.shape[:3], key.shape[2]), dtype=torch.float32)


@torch.library.custom_op("softattn::gaussian_kernel_gradient", mutates_args=())
def gaussian_kernel_gradient(
    grad: Tensor, query: Tensor, key: Tensor, block: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """dQ and dK of ``gaussian_kernel``."""
    from softattn import kernels

    return kernels.gaussian_kernel_gradient(query, key, block, grad, scale=scale)


@gaussian_kernel_gradient.register_fake
def _(grad, query, key, block, scale):  # type: ignore[no-untyped-def]
    return _contiguous_like(query), _contiguous_like(key)


def _save_gaussian_kernel(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, ctx.scale = inputs
    ctx.save_for_backward(query, key, output)


def _gaussian_kernel_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *gaussian_kernel_gradient(grad, *ctx.saved_tensors, ctx.scale), None


gaussian_kernel.register_autograd(_gaussian_kernel_backward, setup_context=_save_gaussian_kernel)


@torch.library.custom_op("softattn::newton", mutates_args=())
def newton(target: Tensor, start: Tensor, lower: float, steps: int) -> Tensor:
    """``steps`` of Newton's iteration V ← (2 c V − V A V) / c², one launch for all.

    Args:
        target: A, (matrices, m, m), float32.
        start: the first V, likewise.
        lower: l, with c = (1 + l) / 2 and l ← l (2 c − l) / c²; 1 is the plain iteration.
        steps: how many, at least 1.
    """
    from softattn import kernels

    return kernels.newton(target, start, lower=lower, steps=steps)


@newton.register_fake
def _(target, start, lower, steps):  # type: ignore[no-untyped-def]
    return _contiguous_like(target)


@torch.library.custom_op("softattn::newton_gradient", mutates_args=())
def newton_gradient(
    grad: Tensor, target: Tensor, start: Tensor, lower: float, steps: int
) -> tuple[Tensor, Tensor]:
    """dA and dV₀ of ``newton``, through its steps, which are taken again by matrix products."""
    with without_autocast(target.device):
        inverses, coefficients = [start], []
        for _ in range(steps):
            middle = (1 + lower) / 2
            keep, subtract = 2 / middle, 1 / middle**2
            lower = min(lower * (2 * middle - lower) * subtract, 1.0)
            v = inverses[-1]
            inverses.append(torch.baddbmm(v, v @ target, v, beta=keep, alpha=-subtract))
            coefficients.append((keep, subtract))
        grad = grad * (2 / (1 + lower))
        grad_target = torch.zeros_like(target)
        for v, (keep, subtract) in zip(inverses[-2::-1], coefficients[::-1], strict=True):
            left = v.mT @ grad
            grad_target -= subtract * (left @ v.mT)
            grad = keep * grad - subtract * (grad @ v.mT @ target.mT + target.mT @ left)
    return grad_target, grad


@newton_gradient.register_fake
def _(grad, target, start, lower, steps):  # type: ignore[no-untyped-def]
    return torch.empty_like(target), torch.empty_like(start)


def _save_newton(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    target, start, ctx.lower, ctx.steps = inputs
    ctx.save_for_backward(target, start)


def _newton_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *newton_gradient(grad, *ctx.saved_tensors, ctx.lower, ctx.steps), None, None


newton.register_autograd(_newton_backward, setup_context=_save_newton)


def _refuse_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(
        "the gradients of softattn's Triton kernels cannot be differentiated again; use "
        "impl='eager', whose gradients can"
    )


for _gradient in (
    landmark_attention_gradient,
    gaussian_attention_gradient,
    gaussian_kernel_gradient,
    newton_gradient,
):
    _gradient.register_autograd(_refuse_second_derivative)


def _rate(scale: float) -> float:
    """s log₂(e) / 2, with which k(x, y) = 2^(−rate ‖x − y‖²)."""
    return scale * math.log2(math.e) / 2


def _center(tokens: Tensor) -> Tensor | None:
    """What is taken off float32 tokens; half precision would lose digits by it."""
    return median_token(tokens)[:, :, 0].contiguous() if tokens.dtype == torch.float32 else None


def _or_empty(tensor: Tensor | None) -> Tensor:
    """Operators return tensors only."""
    return torch.empty(0) if tensor is None else tensor


def _contiguous_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
