"""Factors that were computed in float32, cut for the matrix units before a launch."""

from typing import NamedTuple

import torch
from torch import Tensor

from softattn.kernels.launching import rows_argument, rows_of


class Pieces(NamedTuple):
    """A matrix as unit · (first + rest), see ``softattn.kernels.arithmetic``.

    first: (batch, heads, rows, columns), in the dtype of the tokens.
    rest: likewise and with the same strides; None where ``first`` is the matrix itself.
    unit: (batch, heads), float32; None where it is 1.
    """

    first: Tensor
    rest: Tensor | None = None
    unit: Tensor | None = None


class Weights(NamedTuple):
    """A factor in pieces, and the column beside it.

    pieces: of the factor.
    column: (batch, heads, rows), float32; None where there is none.
    """

    pieces: Pieces
    column: Tensor | None = None


def in_pieces(matrix: Tensor, dtype: torch.dtype) -> Pieces:
    """Cuts a matrix of float32 into pieces of ``dtype``; a matrix of ``dtype`` stays whole.

    float16 has few exponents, so there the unit is the largest entry.
    """
    if matrix.dtype == dtype:
        return Pieces(rows_of(matrix))
    unit = None
    if dtype == torch.float16:
        largest = matrix.abs().amax((-2, -1)) if matrix.numel() else matrix.new_ones(())
        unit = torch.where(largest > 0, largest, 1.0).expand(matrix.shape[:2]).contiguous()
        matrix = matrix / unit[..., None, None]
    first = matrix.to(dtype, memory_format=torch.contiguous_format)
    return Pieces(first, (matrix - first).to(dtype).contiguous(), unit)


def weights_in_pieces(weights: Tensor, columns: int, dtype: torch.dtype) -> Weights:
    """Cuts all but the last of (batch, heads, m, columns + 1); with ``columns`` columns, all."""
    column = weights[..., columns].contiguous() if weights.shape[3] > columns else None
    return Weights(in_pieces(weights[..., :columns], dtype), column)


def weights_arguments(
    name: str, column_name: str, weights: Tensor | Weights | None, columns: int, dtype: torch.dtype
) -> dict[str, object]:
    """A kernel's arguments for the pieces of a factor and for the column beside it.

    Args:
        name: of the factor in the kernel.
        column_name: of the column.
        weights: cut already, or whole: (batch, heads, m, columns) or (batch, heads, m,
            columns + 1); None for a kernel that runs without.
        columns: of the factor.
        dtype: of the pieces.
    """
    if isinstance(weights, Tensor):
        weights = weights_in_pieces(weights, columns, dtype)
    pieces, column = weights or (None, None)
    return {
        **rows_argument(name, pieces and pieces.first),
        f"{name}_rest_ptr": pieces and pieces.rest,
        f"{name}_unit_ptr": pieces and pieces.unit,
        f"{column_name}_ptr": column,
    }


def middle_arguments(
    middle: Tensor | Pieces | None, dtype: torch.dtype
) -> dict[str, Tensor | None]:
    """A kernel's arguments for the pieces of M, (batch, heads, m, m), cut already or whole.

    None is for a kernel that runs without.
    """
    if isinstance(middle, Tensor):
        middle = in_pieces(middle.contiguous(), dtype)
    first, rest, unit = middle or (None, None, None)
    return {"middle_ptr": first, "middle_rest_ptr": rest, "middle_unit_ptr": unit}
