"""(A + ε I)⁻¹ by a Cholesky factorisation, which on a CPU is faster than Newton's steps."""

from typing import Any

import torch
from torch import Tensor

from softattn.common.compiler import apply, is_exported
from softattn.common.precision import without_autocast
from softattn.common.products import matmul
from softattn.common.ridge import is_above_rounding


def regularized_inverse(gram: Tensor, ridge: float) -> Tensor | None:
    """See ``Backend.regularized_inverse``.

    None where another device or the format of an exported graph has no fast factorisation, and
    where rounding could make the least pivots negative.
    """
    if gram.device.type != "cpu" or is_exported() or not torch._C.has_lapack:
        return None
    if not is_above_rounding(ridge, gram.shape[-1], gram.dtype):
        return None
    inverse: Tensor = apply(_RegularizedInverse, gram, ridge)
    return inverse


class _RegularizedInverse(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(gram: Tensor, ridge: float) -> Tensor:
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * eye)
        # A factorisation stops where it meets NaN.
        return torch.cholesky_inverse(factor).masked_fill(failed[..., None, None] > 0, torch.nan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (inverse,) = ctx.saved_tensors
        with without_autocast(grad.device):
            return -matmul(matmul(inverse, grad), inverse), None
