"""Products with the Gaussian kernel, tile by tile: the n × m block is never whole in memory.

The kernel is recomputed wherever it is needed, forward and backward. Everything here is plain
PyTorch and runs on any device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softattn.common.centering import median_token
from softattn.common.compiler import apply, is_exported
from softattn.common.precision import compute_dtype, without_autocast

# Elements of one tile of the kernel, over all batch items and heads: 2 MiB in float32.
_TILE_ELEMENTS = 2**19
# Of the two token axes the shorter one is cut at this length, and the longer one into what the
# tile then still holds, but not into slivers where the batch is large.
_SHORT_SIDE = 1024
_LEAST_LONG_SIDE = 128

Tensors = dict[str, Tensor]

# Which axis of the kernel a tensor is cut along, in the order of the functions' arguments. The
# gradient of a result has the result's name, and a cotangent of a gradient a "d_" before it.
_AXES = {
    "query": "rows",
    "key": "cols",
    "value": "cols",
    "form": None,
    "shift": "rows",
    "product": "rows",
    "quadratic": "rows",
}


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

    Rows that meet nothing but ``padding`` (batch, n_k) get 0.
    """
    tokens = {"query": query, "key": key}
    tiles = _Tiles(tokens)

    def largest_exponent(rows: slice, cols: slice) -> Tensor:
        exponent = _exponent(**tiles.cut_centred(tokens, rows, cols), scale=scale)
        if padding is not None:
            exponent = exponent.masked_fill(padding[:, None, None, cols], -torch.inf)
        return exponent.amax(-1, keepdim=True)

    with torch.no_grad(), without_autocast(query.device):
        shift = [
            -torch.cat([largest_exponent(rows, cols) for cols in tiles.cols], -1).amax(-1, True)
            for rows in tiles.rows
        ]
        return torch.cat(shift, -2).nan_to_num(posinf=0.0)


def product_by_tiles(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    form: Tensor | None,
    shift: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor | None]:
    """``gaussian_product`` without its gradient."""
    operands = _present(query, key, value, form, shift)
    sums = _Tiles(operands).sum(lambda **tile: _product(**tile, scale=scale), operands)
    return sums["product"], sums.get("quadratic")


def gradients_by_tiles(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    form: Tensor | None,
    shift: Tensor | None,
    grad_product: Tensor,
    grad_quadratic: Tensor | None,
    scale: float,
) -> tuple[Tensor | None, ...]:
    """The gradients of ``gaussian_product`` in Q, K, V and, with a form, M."""
    operands = _present(query, key, value, form, shift, grad_product, grad_quadratic)
    sums = _Tiles(operands).sum(lambda **tile: _gradients(**tile, scale=scale), operands)
    return tuple(_in_dtype_of(operands, sums, "query", "key", "value", "form"))


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
        return product_by_tiles(query, key, value, form, shift, scale)

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
        return gradients_by_tiles(
            query, key, value, form, shift, grad_product, grad_quadratic, scale
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        operands, cotangents = _present(*ctx.saved_tensors), _present(*grads)

        def second_gradients(**tile: Tensor) -> Tensors:
            cut = {name: tile.pop(f"d_{name}") for name in cotangents}
            shift = {"shift": tile.pop("shift")} if "shift" in tile else {}
            pull_back = torch.func.vjp(
                lambda tile: _gradients(**tile, **shift, scale=ctx.scale), tile
            )[1]
            (second,) = pull_back(cut)
            return second

        sums = _Tiles(operands).sum(
            second_gradients, operands, {f"d_{name}": grad for name, grad in cotangents.items()}
        )
        query, key, value, form, product, quadratic = _in_dtype_of(
            operands, sums, "query", "key", "value", "form", "product", "quadratic"
        )
        return query, key, value, form, None, product, quadratic, None


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
        # The shift lifts no key above 0, up to rounding, but padding, which must not overflow.
        return _exponent(query, key, scale).add_(shift).clamp_max_(1).exp_()
    if query.shape[-2] < key.shape[-2]:
        return _exponent(key, query, scale).exp_().mT
    return _exponent(query, key, scale).exp_()


def _product(
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
        return {"product": p @ value}
    return {"product": p @ value, "quadratic": ((p @ form) * p).sum(-1, keepdim=True)}


def _gradients(
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
    dp = product @ value.mT
    form_gradient = {}
    if form is not None and quadratic is not None:
        dp = dp + quadratic * (p @ (form + form.mT))
        form_gradient = {"form": p.mT @ (quadratic * p)}
    w = dp.mul_(p).mul_(-scale)
    return {
        "query": w.sum(-1, keepdim=True) * query - w @ key,
        "key": w.sum(-2).unsqueeze(-1) * key - w.mT @ query,
        "value": p.mT @ product,
    } | form_gradient


class _Tiles:
    """The tiles that a kernel is cut into, with its tokens moved towards the origin.

    The kernel does not change when all tokens move, but its exponents lose fewer digits near the
    origin: the median of some tokens of the shorter side, which outliers do not move, is taken off
    both sides.
    """

    def __init__(self, operands: Tensors) -> None:
        query, key = operands["query"], operands["key"]
        self.dtype = compute_dtype(*operands.values())
        self.device = query.device
        n_q, n_k = self.n_q, self.n_k = query.shape[-2], key.shape[-2]
        self.center = median_token((key if n_k <= n_q else query).detach()).to(self.dtype)
        if is_exported():
            # An exported graph has no loop whose length depends on a size.
            self.rows, self.cols = [slice(None)], [slice(None)]
            return
        # A quadratic form needs whole rows of P.
        short = min(n_q, n_k) if "form" in operands else min(n_q, n_k, _SHORT_SIDE)
        batch = query.shape[:-2].numel()
        long = max(_LEAST_LONG_SIDE, _TILE_ELEMENTS // max(batch * short, 1))
        if "form" in operands:
            self.rows, self.cols = _slices(n_q, long), _slices(n_k, n_k)
        elif n_q >= n_k:
            self.rows, self.cols = _slices(n_q, long), _slices(n_k, short)
        else:
            self.rows, self.cols = _slices(n_q, short), _slices(n_k, long)

    def cut(self, tensors: Tensors, rows: slice, cols: slice) -> Tensors:
        """The parts of the tensors that belong to one tile, in the dtype of the arithmetic."""
        parts = {"rows": rows, "cols": cols, None: slice(None)}
        return {
            name: tensor[..., parts[_AXES[name.removeprefix("d_")]], :].to(self.dtype)
            for name, tensor in tensors.items()
        }

    def cut_centred(self, operands: Tensors, rows: slice, cols: slice) -> Tensors:
        """``cut``, with queries and keys near the origin."""
        tile = self.cut(operands, rows, cols)
        return tile | {name: tile[name] - self.center for name in ("query", "key")}

    def sum(
        self,
        function: Callable[..., Tensors],
        operands: Tensors,
        cotangents: Tensors | None = None,
    ) -> Tensors:
        """Adds what ``function`` makes of each tile, in a fixed order."""
        sums: Tensors = {}
        with without_autocast(self.device):
            for i, rows in enumerate(self.rows):
                for j, cols in enumerate(self.cols):
                    tile = self.cut_centred(operands, rows, cols)
                    terms = function(**tile, **self.cut(cotangents or {}, rows, cols))
                    if len(self.rows) == len(self.cols) == 1:
                        return terms
                    # The part of a sum that a tile adds to, and whether one has before.
                    places = {
                        "rows": (rows, j > 0),
                        "cols": (cols, i > 0),
                        None: (slice(None), i + j > 0),
                    }
                    for name, term in terms.items():
                        part, begun = places[_AXES[name]]
                        if name not in sums:
                            sums[name] = self._room_for(name, term)
                        target = sums[name][..., part, :]
                        target.add_(term) if begun else target.copy_(term)
        return sums

    def _room_for(self, name: str, term: Tensor) -> Tensor:
        tokens = {"rows": self.n_q, "cols": self.n_k, None: term.shape[-2]}[_AXES[name]]
        return term.new_empty(*term.shape[:-2], tokens, term.shape[-1])


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, max(length, 1), max(size, 1))]


def _present(*tensors: Tensor | None) -> Tensors:
    return {name: t for name, t in zip(_AXES, tensors, strict=False) if t is not None}


def _in_dtype_of(operands: Tensors, sums: Tensors, *names: str) -> list[Tensor | None]:
    return [sums[n].to(operands[n].dtype) if n in sums else None for n in names]
