"""Tiles of the kernel k(Q, K), and sums over them in a fixed order."""

from collections.abc import Callable

from torch import Tensor

from softattn.common.centering import median_token
from softattn.common.compiler import is_exported
from softattn.common.precision import compute_dtype

# Elements of one tile of the kernel, over all batch items and heads: 2 MiB in float32.
_TILE_ELEMENTS = 2**19
# Of the two token axes the shorter one is cut at this length, and the longer one into what the
# tile then still holds, but not into slivers where the batch is large.
_SHORT_SIDE = 1024
_LEAST_LONG_SIDE = 128

Tensors = dict[str, Tensor]

# Which axis of the kernel a tensor is cut along, in the order of the functions' arguments. The
# gradient of a result has the result's name, and a cotangent of a gradient a "d_" before it.
AXES = {
    "query": "rows",
    "key": "cols",
    "value": "cols",
    "form": None,
    "shift": "rows",
    "product": "rows",
    "quadratic": "rows",
}


class Tiles:
    """The tiles that a kernel is cut into, with its tokens moved towards the origin.

    The kernel does not change when all tokens move, but its exponents lose fewer digits near the
    origin: the median of some tokens of the shorter side, which outliers do not move, is taken off
    both sides.
    """

    def __init__(self, operands: Tensors) -> None:
        query, key = operands["query"], operands["key"]
        self.dtype = compute_dtype(*operands.values())
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
            name: tensor[..., parts[AXES[name.removeprefix("d_")]], :].to(self.dtype)
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
                    part, begun = places[AXES[name]]
                    if name not in sums:
                        sums[name] = self._room_for(name, term)
                    target = sums[name][..., part, :]
                    target.add_(term) if begun else target.copy_(term)
        return sums

    def _room_for(self, name: str, term: Tensor) -> Tensor:
        tokens = {"rows": self.n_q, "cols": self.n_k, None: term.shape[-2]}[AXES[name]]
        return term.new_empty(*term.shape[:-2], tokens, term.shape[-1])


def token_slices(tokens: Tensor, columns: int, multiple: int = 1) -> list[slice]:
    """Slices of tokens (..., n, d) that fill a tile of so many columns, for the whole batch.

    The length of each but the last is a multiple of ``multiple``.
    """
    if is_exported():
        # An exported graph has no loop whose length depends on a size.
        return [slice(None)]
    batch = tokens.shape[:-2].numel()
    size = max(_LEAST_LONG_SIDE, _TILE_ELEMENTS // max(batch * columns, 1))
    return _slices(tokens.shape[-2], max(size // multiple, 1) * multiple)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, max(length, 1), max(size, 1))]


def present(*tensors: Tensor | None) -> Tensors:
    """The tensors that are there, by their names in ``AXES``, in whose order they come."""
    return {name: t for name, t in zip(AXES, tensors, strict=False) if t is not None}


def in_dtype_of(operands: Tensors, sums: Tensors, *names: str) -> list[Tensor | None]:
    """Sums by name in the dtype of the operand of that name, None where there is none."""
    return [sums[n].to(operands[n].dtype) if n in sums else None for n in names]
