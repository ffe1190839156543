"""Attention through landmarks: the operator, its gradients and its form for compilers.

``torch.compile`` calls each direction as one operator.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from softattn.common.compiler import apply, is_compiled
from softattn.common.padding import blank_padding, gather_padding
from softattn.common.precision import compute_dtype, without_autocast
from softattn.common.products import matmul
from softattn.common.quotient import floored, restored_diagonal
from softattn.common.ranks import sum_over_ranks
from softattn.eager.near_field import near_field_terms
from softattn.eager.order import order_of_rows, padding_in_order, permuted
from softattn.eager.passes import Passes
from softattn.eager.product import gaussian_product, nearest_key_shift

# The arguments that have a gradient come first: query, key, value, landmarks, middle and weights.
_INPUTS = 6


def landmark_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    middle: Tensor,
    *,
    quotient: bool,
    near_field: int,
    order: Tensor | None,
    key_weights: Tensor | None,
    scale: float,
    key_padding_mask: Tensor | None,
    group: str | None,
) -> Tensor:
    """See ``Backend.landmark_attention``."""
    orders = None
    if order is not None:
        # The passes take runs of tokens that follow each other in memory.
        orders = order_of_rows(order)
        query, value = permuted(query, *orders), permuted(value, *orders)
        key_padding_mask = padding_in_order(key_padding_mask)
    tensors = (query, key, value, landmarks, middle, key_weights, key_padding_mask)
    output, _ = apply(_LandmarkAttention, *tensors, scale, quotient, near_field, group)
    return output if orders is None else permuted(output, *reversed(orders))


class _LandmarkAttention(torch.autograd.Function):
    """O, and S for the gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor | None,
        value: Tensor,
        landmarks: Tensor,
        middle: Tensor,
        weights: Tensor | None,
        padding: Tensor | None,
        scale: float,
        quotient: bool,
        near_field: int,
        group: str | None,
    ) -> tuple[Tensor, Tensor]:
        compute = _forward_operator if is_compiled() else _forward
        inputs = (query, key, value, landmarks, middle, weights)
        return compute(*inputs, padding, scale, quotient, near_field, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.scale, ctx.quotient, ctx.near_field, ctx.group = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, output, sums = ctx.saved_tensors
        arguments: Any = [*tensors, ctx.scale, ctx.quotient, ctx.near_field, ctx.group]
        if torch.is_grad_enabled() and not is_compiled():
            return *_gradients_by_products(arguments, grad), None, None, None, None, None
        compute: Any = _gradients_operator if is_compiled() else _gradients
        needed = [bool(need) for need in ctx.needs_input_grad[:_INPUTS]]
        gradients = compute(*arguments, grad, output, sums, needed)
        found = [g if need else None for g, need in zip(gradients, needed, strict=True)]
        return *found, None, None, None, None, None


# Operators return tensors only: an empty one means None.


def _forward(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    middle: Tensor,
    weights: Tensor | None,
    padding: Tensor | None,
    scale: float,
    quotient: bool,
    near_field: int,
    group: str | None,
) -> tuple[Tensor, Tensor]:
    inputs = (query, key, value, landmarks, middle, weights)
    passes = Passes(*inputs, padding, scale, quotient, near_field, group)
    sums = passes.sums()
    return passes.output(sums), sums


_forward_operator = torch.library.custom_op("softattn::eager_landmark_attention", mutates_args=())(
    _forward
)


@_forward_operator.register_fake
def _(query, key, value, landmarks, middle, weights, padding, scale, quotient, near_field, group):  # type: ignore[no-untyped-def]
    *outer, m, _ = landmarks.shape
    d_v = value.shape[-1]
    return (
        value.new_empty((*outer, query.shape[-2], d_v)),
        value.new_empty((*outer, m, d_v + quotient), dtype=compute_dtype(query, value, middle)),
    )


def _gradients(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    middle: Tensor,
    weights: Tensor | None,
    padding: Tensor | None,
    scale: float,
    quotient: bool,
    near_field: int,
    group: str | None,
    grad: Tensor,
    output: Tensor,
    sums: Tensor,
    needed: Sequence[bool],
) -> list[Tensor]:
    inputs = (query, key, value, landmarks, middle, weights)
    with without_autocast(query.device):
        passes = Passes(*inputs, padding, scale, quotient, near_field, group)
        computed = passes.gradients(grad, output, sums, needed)
    return [
        query.new_empty(0)
        if tensor is None or gradient is None
        else gradient.to(tensor.dtype).contiguous()
        for tensor, gradient in zip(inputs, computed, strict=True)
    ]


_gradients_operator = torch.library.custom_op(
    "softattn::eager_landmark_attention_gradient",
    mutates_args=(),
    # torch 2.6 cannot infer it from these annotations.
    schema="(Tensor query, Tensor? key, Tensor value, Tensor landmarks, Tensor middle, "
    "Tensor? weights, Tensor? padding, float scale, bool quotient, int near_field, "
    "str? group, Tensor grad, Tensor output, Tensor sums, bool[] needed) -> Tensor[]",
)(_gradients)


@_gradients_operator.register_fake
def _(query, key, value, landmarks, middle, weights, *rest):  # type: ignore[no-untyped-def]
    inputs, needed = (query, key, value, landmarks, middle, weights), rest[-1]
    return [
        query.new_empty(0) if tensor is None or not need else tensor.new_empty(tensor.shape)
        for tensor, need in zip(inputs, needed, strict=True)
    ]


def _gradients_by_products(arguments: list[Any], grad: Tensor) -> list[Tensor | None]:
    """The gradients by products that can be differentiated again."""
    inputs, options = arguments[:_INPUTS], arguments[_INPUTS:]
    present = [tensor for tensor in inputs if tensor is not None]

    def output_of(*tensors: Tensor) -> Tensor:
        rest = iter(tensors)
        given: list[Any] = [None if tensor is None else next(rest) for tensor in inputs]
        return _by_products(*given, *options)

    with without_autocast(grad.device):
        pull_back = torch.func.vjp(output_of, *present)[1]
        gradients = iter(pull_back(grad))
    return [None if tensor is None else next(gradients) for tensor in inputs]


def _by_products(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    middle: Tensor,
    weights: Tensor | None,
    padding: Tensor | None,
    scale: float,
    quotient: bool,
    near_field: int,
    group: str | None,
) -> Tensor:
    """O by products that can be differentiated any number of times."""
    keys = gather_padding(query if key is None else key, padding)
    query = keys if key is None else query
    values = value
    if quotient:
        values = torch.cat([value, torch.ones_like(value[..., :1])], -1)
        values = values if weights is None else values * weights
    values = blank_padding(values, padding)
    sums, _ = gaussian_product(landmarks, keys, values, scale=scale)
    factors = matmul(middle, sum_over_ranks(sums, group))
    if not quotient:
        output, _ = gaussian_product(query, landmarks, factors, scale=scale)
    else:
        factors = torch.cat([factors, factors[..., -1:].abs()], -1)
        restores_diagonal = key is None and near_field == 1
        terms, approximated = gaussian_product(
            query,
            landmarks,
            factors,
            scale=scale,
            form=middle if restores_diagonal else None,
            shift=None if key is None else nearest_key_shift(query, landmarks, scale, None),
        )
        if approximated is not None:
            own = torch.cat([values, values[..., -1:]], -1)
            terms = torch.addcmul(terms, restored_diagonal(approximated), own)
        elif key is None:
            terms = terms + near_field_terms(
                query, landmarks, middle, values, run=near_field, scale=scale
            )
        output = terms[..., :-2] / floored(terms[..., -2:-1], terms[..., -1:])
    return blank_padding(output.to(value.dtype), padding if key is None else None)
