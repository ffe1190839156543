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


def weights_arguments(
    name: str, column_name: str, weights: Tensor | None, columns: int, dtype: torch.dtype
) -> dict[str, object]:
    """A kernel's arguments for the pieces of a factor and for the column beside it.

    Args:
        name: of the factor in the kernel.
        column_name: of the column.
        weights: (batch, heads, m, columns) or (batch, heads, m, columns + 1); None for a kernel
            that runs without.
        columns: of the factor.
        dtype: of the pieces.
    """
    if weights is None:
        pieces, column = None, None
    else:
        pieces = in_pieces(weights[..., :columns], dtype)
        column = weights[..., columns].contiguous() if weights.shape[3] > columns else None
    return {
        **rows_argument(name, pieces and pieces.first),
        f"{name}_rest_ptr": pieces and pieces.rest,
        f"{name}_unit_ptr": pieces and pieces.unit,
        f"{column_name}_ptr": column,
    }


def middle_arguments(middle: Tensor | None, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """A kernel's arguments for the pieces of M, (batch, heads, m, m), or for a kernel without."""
    first, rest, unit = (
        (None, None, None) if middle is None else in_pieces(middle.contiguous(), dtype)
    )
    return {"middle_ptr": first, "middle_rest_ptr": rest, "middle_unit_ptr": unit}
