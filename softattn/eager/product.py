"""Products with the Gaussian kernel, tile by tile: the n × m block is never whole in memory.

The kernel is computed again wherever it is needed, forward and backward. ``torch.compile`` calls
each pass as one operator: traced, its loop over tiles would be unrolled for one number of tokens
and compiled again for the next.
"""

from typing import Any

import torch
from torch import Tensor

from softattn.common.compiler import apply, is_compiled
from softattn.common.precision import compute_dtype, without_autocast
from softattn.common.products import matmul
from softattn.eager.tiles import Tensors, Tiles, in_dtype_of, present


def gaussian_product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    form: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``P V`` with P = k(Q, K), and on request the quadratic forms ``P_i M P_iᵀ`` of its rows.

    Differentiable twice in every tensor but ``shift``, which counts as a constant.

    Args:
        query: (batch, heads, n_q, d).
        key: (batch, heads, n_k, d).
        value: (batch, heads, n_k, d_v).
        scale: s in k(x, y) = exp(−s ‖x − y‖² / 2).
        form: M, (batch, heads, n_k, n_k).
        shift: (batch, heads, n_q, 1), added to the exponents of each row.

    Returns:
        The product (batch, heads, n_q, d_v) and the forms (batch, heads, n_q, 1), or None without
        ``form``; both in float32, or float64 where an input is.
    """
    product, quadratic = apply(_GaussianProduct, query, key, value, form, shift, scale)
    return product, quadratic


def nearest_key_shift(query: Tensor, key: Tensor, scale: float, padding: Tensor | None) -> Tensor:
    """The shift (batch, heads, n_q, 1) that lifts the largest entry of each row of P to 1.

    Rows whose keys are all ``padding`` (batch, n_k) get 0.
    """
    query, key = query.detach(), key.detach()
    compute = _shift_operator if is_compiled() else _shift
    return compute(query, key, padding, scale)


class _GaussianProduct(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        form: Tensor | None,
        shift: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor | None]:
        compute = _product_operator if is_compiled() else _product
        product, quadratic = compute(query, key, value, form, shift, scale)
        return product, None if form is None else quadratic

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return *apply(_GaussianProductBackward, *ctx.saved_tensors, *grads, ctx.scale), None, None


class _GaussianProductBackward(torch.autograd.Function):
    """Gradients in Q, K, V and M: a function of its own, so that it can be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        form: Tensor | None,
        shift: Tensor | None,
        grad_product: Tensor,
        grad_quadratic: Tensor | None,
        scale: float,
    ) -> tuple[Tensor | None, ...]:
        compute = _gradients_operator if is_compiled() else _gradients
        *of_tokens, of_form = compute(
            query, key, value, form, shift, grad_product, grad_quadratic, scale
        )
        return *of_tokens, None if form is None else of_form

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        operands, cotangents = present(*ctx.saved_tensors), present(*grads)

        def second_gradients(**tile: Tensor) -> Tensors:
            cut = {name: tile.pop(f"d_{name}") for name in cotangents}
            shift = {"shift": tile.pop("shift")} if "shift" in tile else {}
            pull_back = torch.func.vjp(
                lambda tile: _tile_gradients(**tile, **shift, scale=ctx.scale), tile
            )[1]
            (second,) = pull_back(cut)
            return second

        with without_autocast(operands["query"].device):
            sums = Tiles(operands).sum(
                second_gradients, operands, {f"d_{name}": grad for name, grad in cotangents.items()}
            )
        query, key, value, form, product, quadratic = in_dtype_of(
            operands, sums, "query", "key", "value", "form", "product", "quadratic"
        )
        return query, key, value, form, None, product, quadratic, None


# Operators return tensors only: an empty one means None.


def _product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    form: Tensor | None,
    shift: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    operands = present(query, key, value, form, shift)
    sums = Tiles(operands).sum(lambda **tile: _tile_product(**tile, scale=scale), operands)
    product = sums["product"]
    return product, sums.get("quadratic", product.new_empty(0))


_product_operator = torch.library.custom_op("softattn::gaussian_product", mutates_args=())(_product)


@_product_operator.register_fake
def _(query, key, value, form, shift, scale):  # type: ignore[no-untyped-def]
    dtype, rows = compute_dtype(query, key, value), query.shape[:3]
    return (
        query.new_empty((*rows, value.shape[3]), dtype=dtype),
        query.new_empty((0,) if form is None else (*rows, 1), dtype=dtype),
    )


def _gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    form: Tensor | None,
    shift: Tensor | None,
    grad_product: Tensor,
    grad_quadratic: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    operands = present(query, key, value, form, shift, grad_product, grad_quadratic)
    with without_autocast(query.device):
        sums = Tiles(operands).sum(lambda **tile: _tile_gradients(**tile, scale=scale), operands)
    of_query, of_key, of_value, of_form = (
        query.new_empty(0) if gradient is None else gradient.contiguous()
        for gradient in in_dtype_of(operands, sums, "query", "key", "value", "form")
    )
    return of_query, of_key, of_value, of_form


_gradients_operator = torch.library.custom_op(
    "softattn::gaussian_product_gradient", mutates_args=()
)(_gradients)


@_gradients_operator.register_fake
def _(query, key, value, form, *rest):  # type: ignore[no-untyped-def]
    return (
        query.new_empty(query.shape),
        key.new_empty(key.shape),
        value.new_empty(value.shape),
        query.new_empty(0) if form is None else form.new_empty(form.shape),
    )


def _shift(query: Tensor, key: Tensor, padding: Tensor | None, scale: float) -> Tensor:
    if key.shape[2] == 0:
        return query.new_zeros((*query.shape[:3], 1), dtype=compute_dtype(query, key))
    tokens = {"query": query, "key": key}
    tiles = Tiles(tokens)

    def largest_exponent(rows: slice, cols: slice) -> Tensor:
        exponent = log_kernel(**tiles.cut_centred(tokens, rows, cols), scale=scale)
        if padding is not None:
            exponent = exponent.masked_fill(padding[:, None, None, cols], -torch.inf)
        return exponent.amax(-1, keepdim=True)

    shift = [
        -torch.cat([largest_exponent(rows, cols) for cols in tiles.cols], -1).amax(-1, True)
        for rows in tiles.rows
    ]
    return torch.cat(shift, -2).nan_to_num(posinf=0.0)


_shift_operator = torch.library.custom_op("softattn::nearest_key_shift", mutates_args=())(_shift)


@_shift_operator.register_fake
def _(query, key, padding, scale):  # type: ignore[no-untyped-def]
    return query.new_empty((*query.shape[:3], 1), dtype=compute_dtype(query, key))


def log_kernel(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """−s ‖x − y‖² / 2 by its three products, at most 0: [..., n_q, n_k]."""
    half = scale / 2
    exponent = matmul(query, (scale * key).mT)
    exponent.sub_(half * query.square().sum(-1, keepdim=True))
    exponent.sub_(half * key.square().sum(-1).unsqueeze(-2))
    return exponent.clamp_max_(0)


def _block(query: Tensor, key: Tensor, scale: float, shift: Tensor | None) -> Tensor:
    """One tile of P. The longer side goes along the rows, where the products are faster."""
    if shift is not None:
        # The shift lifts no key above 0, up to rounding, but padding, which must not overflow.
        return log_kernel(query, key, scale).add_(shift).clamp_max_(1).exp_()
    if query.shape[-2] < key.shape[-2]:
        return log_kernel(key, query, scale).exp_().mT
    return log_kernel(query, key, scale).exp_()


def _tile_product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    form: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    scale: float,
) -> Tensors:
    """What one tile adds to P V and, with a form, to P_i M P_iᵀ."""
    p = _block(query, key, scale, shift)
    if form is None:
        return {"product": matmul(p, value)}
    return {"product": matmul(p, value), "quadratic": (matmul(p, form) * p).sum(-1, keepdim=True)}


def _tile_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    product: Tensor,
    form: Tensor | None = None,
    quadratic: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    scale: float,
) -> Tensors:
    """What one tile adds to dQ, dK, dV and, with a form, dM.

    With G = d(PV) and h = d(P_i M P_iᵀ): dV = Pᵀ G, dM = Pᵀ diag(h) P, and from
    w = −s P ∘ dP, dP = G Vᵀ + h (P M + P Mᵀ):  dQ = rowsum(w) Q − w K,  dK = colsum(w) K − wᵀ Q.
    """
    p = _block(query, key, scale, shift)
    dp = matmul(product, value.mT)
    form_gradient = {}
    if form is not None and quadratic is not None:
        dp = dp + quadratic * matmul(p, form + form.mT)
        form_gradient = {"form": matmul(p.mT, quadratic * p)}
    w = dp.mul_(p).mul_(-scale)
    return {
        "query": w.sum(-1, keepdim=True) * query - matmul(w, key),
        "key": w.sum(-2).unsqueeze(-1) * key - matmul(w.mT, query),
        "value": matmul(p.mT, product),
    } | form_gradient
