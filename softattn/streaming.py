"""Products with the Gaussian kernel, tile by tile: the n × m block is never whole in memory.

The kernel is recomputed wherever it is needed, forward and backward. Everything here is plain
PyTorch and runs on any device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softattn.precision import compute_dtype, without_autocast

# Elements of one tile of the kernel, over all batch items and heads: 2 MiB in float32.
_TILE_ELEMENTS = 2**19
# Of the two token axes the shorter one is cut at this length, and the longer one into what the
# tile then still holds, but not into slivers where the batch is large.
_SHORT_SIDE = 1024
_LEAST_LONG_SIDE = 128

# What a tile adds to sums over its rows, over its columns, and over all tiles.
Terms = tuple[Tensor | None, ...]
Tile = Callable[[slice, slice], tuple[Terms, Terms, Terms]]


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
    product, quadratic = _GaussianProduct.apply(query, key, value, form, shift, scale)  # type: ignore[no-untyped-call]
    return product, quadratic


def nearest_key_shift(query: Tensor, key: Tensor, scale: float, padding: Tensor | None) -> Tensor:
    """The shift (batch, heads, n_q, 1) that lifts the largest entry of each row of P to 1.

    Rows that meet nothing but ``padding`` (batch, n_k) get 0.
    """
    tiles = _Tiles(query, key)

    def largest_exponent(rows: slice, cols: slice) -> Tensor:
        exponent = _exponent(tiles.centred(query, rows), tiles.centred(key, cols), scale)
        if padding is not None:
            exponent = exponent.masked_fill(padding[:, None, None, cols], -torch.inf)
        return exponent.amax(-1, keepdim=True)

    with torch.no_grad(), without_autocast(query.device):
        shift = [
            -torch.cat([largest_exponent(rows, cols) for cols in tiles.cols], -1).amax(-1, True)
            for rows in tiles.rows
        ]
        return torch.cat(shift, -2).nan_to_num(posinf=0.0)


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
    ) -> Terms:
        tiles = _Tiles(query, key, value, whole_rows=form is not None)

        def tile(rows: slice, cols: slice) -> tuple[Terms, Terms, Terms]:
            p = _block(tiles.centred(query, rows), tiles.centred(key, cols), scale, _rows(shift, rows))
            quadratic = None if form is None else ((p @ form) * p).sum(-1, keepdim=True)
            return (p @ tiles.plain(value, cols), quadratic), (), ()

        return tiles.sum(tile)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Terms) -> None:
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, form, shift = ctx.saved_tensors
        grad_product, grad_quadratic = grads
        if form is None:
            grad_quadratic = None
        gradients = _GaussianProductBackward.apply(  # type: ignore[no-untyped-call]
            query, key, value, form, grad_product, grad_quadratic, shift, ctx.scale
        )
        return *gradients, None, None


class _GaussianProductBackward(torch.autograd.Function):
    """Gradients in Q, K, V and M: a function of its own, so that it can be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        form: Tensor | None,
        grad_product: Tensor,
        grad_quadratic: Tensor | None,
        shift: Tensor | None,
        scale: float,
    ) -> Terms:
        tiles = _Tiles(query, key, value, whole_rows=form is not None)

        def tile(rows: slice, cols: slice) -> tuple[Terms, Terms, Terms]:
            inputs = tiles.inputs(rows, cols, query, key, value, form, grad_product, grad_quadratic)
            dq, dk, dv, *dm = _tile_gradients(**inputs, scale=scale, shift=_rows(shift, rows))
            return (dq,), (dk, dv), tuple(dm)

        (dq,), (dk, dv), dm = tiles.sum(tile)
        return *map(_like, (dq, dk, dv, *(dm or (None,))), (query, key, value, form)),

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Terms) -> None:
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        query, key, value, form, grad_product, grad_quadratic, shift = ctx.saved_tensors
        scale = ctx.scale
        tiles = _Tiles(query, key, value, whole_rows=form is not None)

        def tile(rows: slice, cols: slice) -> tuple[Terms, Terms, Terms]:
            def gradients(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
                return _tile_gradients(**inputs, scale=scale, shift=_rows(shift, rows))

            inputs = tiles.inputs(rows, cols, query, key, value, form, grad_product, grad_quadratic)
            dq, dk, dv, dm = grads
            cotangents = (tiles.plain(dq, rows), tiles.plain(dk, cols), tiles.plain(dv, cols))
            if dm is not None:
                cotangents += (dm,)
            (g,) = torch.func.vjp(gradients, inputs)[1](cotangents)
            return (
                (g["query"], g["grad_product"], g.get("grad_quadratic")),
                (g["key"], g["value"]),
                (g.get("form"),),
            )

        (dq, dg, dh), (dk, dv), (dm,) = tiles.sum(tile)
        sources = (query, key, value, form, grad_product, grad_quadratic)
        return *map(_like, (dq, dk, dv, dm, dg, dh), sources), None, None


def _exponent(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """−s ‖x − y‖² / 2 by its three products, at most 0: [..., n_q, n_k]."""
    half = scale / 2
    exponent = query @ (scale * key).mT
    exponent.sub_(half * query.square().sum(-1, keepdim=True))
    exponent.sub_(half * key.square().sum(-1).unsqueeze(-2))
    return exponent.clamp_max_(0)


def _block(query: Tensor, key: Tensor, scale: float, shift: Tensor | None) -> Tensor:
    """One tile of P. The longer side goes along the rows, where the products are faster."""
    if shift is not None:
        return _exponent(query, key, scale).add_(shift).exp_()
    if query.shape[-2] < key.shape[-2]:
        return _exponent(key, query, scale).exp_().mT
    return _exponent(query, key, scale).exp_()


def _tile_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_product: Tensor,
    form: Tensor | None = None,
    grad_quadratic: Tensor | None = None,
    *,
    scale: float,
    shift: Tensor | None,
) -> tuple[Tensor, ...]:
    """What one tile adds to dQ, dK, dV and, with a form, dM.

    With G = d(PV) and h = d(P_i M P_iᵀ): dV = Pᵀ G, dM = Pᵀ diag(h) P, and from
    w = −s P ∘ dP, dP = G Vᵀ + h (P M + P Mᵀ):  dQ = rowsum(w) Q − w K,  dK = colsum(w) K − wᵀ Q.
    """
    p = _block(query, key, scale, shift)
    dv = p.mT @ grad_product
    dp = grad_product @ value.mT
    form_gradient: tuple[Tensor, ...] = ()
    if form is not None:
        dp = dp + grad_quadratic * (p @ (form + form.mT))
        form_gradient = (p.mT @ (grad_quadratic * p),)
    w = dp.mul_(p).mul_(-scale)
    dq = w.sum(-1, keepdim=True) * query - w @ key
    dk = w.sum(-2).unsqueeze(-1) * key - w.mT @ query
    return dq, dk, dv, *form_gradient


class _Tiles:
    """The tiles that a kernel is cut into, with its tokens moved towards the origin.

    The kernel does not change when all tokens move, but its exponents lose fewer digits near the
    origin: the mean of the shorter side is taken off both.
    """

    def __init__(self, query: Tensor, key: Tensor, *others: Tensor, whole_rows: bool = False):
        self.dtype = compute_dtype(query, key, *others)
        self.device = query.device
        n_q, n_k = query.shape[-2], key.shape[-2]
        shorter = key if n_k <= n_q else query
        mean = shorter.detach().to(self.dtype).sum(-2, keepdim=True) / max(shorter.shape[-2], 1)
        self.center = mean
        batch = max(query.shape[:-2].numel(), 1)
        short = min(n_q, n_k) if whole_rows else min(n_q, n_k, _SHORT_SIDE)
        long = max(_LEAST_LONG_SIDE, _TILE_ELEMENTS // (batch * max(short, 1)))
        self.rows = _slices(n_q, long if n_q >= n_k or whole_rows else short)
        self.cols = _slices(n_k, n_k if whole_rows else short if n_q >= n_k else long)

    def centred(self, x: Tensor, part: slice) -> Tensor:
        return x[..., part, :].to(self.dtype) - self.center

    def plain(self, x: Tensor, part: slice) -> Tensor:
        return x[..., part, :].to(self.dtype)

    def inputs(
        self,
        rows: slice,
        cols: slice,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        form: Tensor | None,
        grad_product: Tensor,
        grad_quadratic: Tensor | None,
    ) -> dict[str, Tensor]:
        """The arguments of ``_tile_gradients`` for one tile."""
        inputs = {
            "query": self.centred(query, rows),
            "key": self.centred(key, cols),
            "value": self.plain(value, cols),
            "grad_product": self.plain(grad_product, rows),
        }
        if form is not None and grad_quadratic is not None:
            inputs |= {"form": form, "grad_quadratic": self.plain(grad_quadratic, rows)}
        return inputs

    def sum(self, tile: Tile) -> tuple[Terms, Terms, Terms]:
        """Adds the terms of all tiles, in a fixed order."""
        by_row: list[Terms] = []
        by_col: list[Terms] = [()] * len(self.cols)
        overall: Terms = ()
        with without_autocast(self.device):
            for rows in self.rows:
                row_terms: Terms = ()
                for j, cols in enumerate(self.cols):
                    terms = tile(rows, cols)
                    row_terms = _add(row_terms, terms[0])
                    by_col[j] = _add(by_col[j], terms[1])
                    overall = _add(overall, terms[2])
                by_row.append(row_terms)
            return _concatenate(by_row), _concatenate(by_col), overall


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, max(length, 1), max(size, 1))]


def _rows(shift: Tensor | None, rows: slice) -> Tensor | None:
    return None if shift is None else shift[..., rows, :]


def _add(total: Terms, terms: Terms) -> Terms:
    if not total:
        return terms
    return tuple(b if a is None or b is None else a + b for a, b in zip(total, terms, strict=True))


def _concatenate(parts: list[Terms]) -> Terms:
    """Joins the parts along the tokens; a single part is returned as it is."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*parts, strict=True)
    return tuple(None if c[0] is None else torch.cat(c, -2) for c in columns)  # type: ignore[arg-type]


def _like(gradient: Tensor | None, source: Tensor | None) -> Tensor | None:
    return gradient if gradient is None or source is None else gradient.to(source.dtype)
