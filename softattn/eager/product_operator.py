"""The streaming passes as operators, which ``torch.compile`` calls and does not look into.

Traced, their loops over tiles would be unrolled for one number of tokens, and compiled anew for the
next. An operator is compiled once for any number, and takes as little memory as ever.
"""

from typing import Any

import torch
from torch import Tensor

from softattn.common.compiler import is_compiled
from softattn.common.precision import compute_dtype
from softattn.eager import product as streaming


def gaussian_product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    form: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``streaming.gaussian_product``, as one operator under ``torch.compile``."""
    if not is_compiled():
        return streaming.gaussian_product(query, key, value, scale=scale, form=form, shift=shift)
    product, quadratic = _product(query, key, value, form, shift, scale)
    return product, None if form is None else quadratic


def nearest_key_shift(query: Tensor, key: Tensor, scale: float, padding: Tensor | None) -> Tensor:
    """``streaming.nearest_key_shift``, as one operator under ``torch.compile``."""
    if not is_compiled():
        return streaming.nearest_key_shift(query, key, scale, padding)
    return _shift(query.detach(), key.detach(), padding, scale)


@torch.library.custom_op("softattn::gaussian_product", mutates_args=())
def _product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    form: Tensor | None,
    shift: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    product, quadratic = streaming.product_by_tiles(query, key, value, form, shift, scale)
    return product, product.new_empty(0) if quadratic is None else quadratic


@_product.register_fake
def _(query, key, value, form, shift, scale):  # type: ignore[no-untyped-def]
    dtype, rows = compute_dtype(query, key, value), query.shape[:3]
    return (
        query.new_empty((*rows, value.shape[3]), dtype=dtype),
        query.new_empty((0,) if form is None else (*rows, 1), dtype=dtype),
    )


@torch.library.custom_op("softattn::gaussian_product_gradient", mutates_args=())
def _product_gradient(
    grad_product: Tensor,
    grad_quadratic: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    form: Tensor | None,
    shift: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients = streaming.gradients_by_tiles(
        query,
        key,
        value,
        form,
        shift,
        grad_product,
        None if form is None else grad_quadratic,
        scale,
    )
    of_query, of_key, of_value, of_form = (
        query.new_empty(0) if gradient is None else gradient.contiguous() for gradient in gradients
    )
    return of_query, of_key, of_value, of_form


@_product_gradient.register_fake
def _(grad_product, grad_quadratic, query, key, value, form, *rest):  # type: ignore[no-untyped-def]
    return (
        query.new_empty(query.shape),
        key.new_empty(key.shape),
        value.new_empty(value.shape),
        query.new_empty(0) if form is None else form.new_empty(form.shape),
    )


def _save_product(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _product_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    *of_tokens, of_form = _product_gradient(*grads, *ctx.saved_tensors, ctx.scale)
    has_form = ctx.saved_tensors[3] is not None
    return *of_tokens, of_form if has_form else None, None, None


_product.register_autograd(_product_backward, setup_context=_save_product)


@torch.library.custom_op("softattn::nearest_key_shift", mutates_args=())
def _shift(query: Tensor, key: Tensor, padding: Tensor | None, scale: float) -> Tensor:
    return streaming.nearest_key_shift(query, key, scale, padding)


@_shift.register_fake
def _(query, key, padding, scale):  # type: ignore[no-untyped-def]
    return query.new_empty((*query.shape[:3], 1), dtype=compute_dtype(query, key))
