"""Factors that were computed in float32, cut for the matrix units before a launch."""

from typing import NamedTuple

import torch
from torch import Tensor

from softattn.kernels.launching import rows_of


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
    """Cuts a matrix of float32; one that has ``dtype`` stays whole.

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
