"""Matrix products with the digits of float32, also where global flags allow TF32."""

from typing import Any

import torch
from torch import Tensor

# TF32 keeps 10 of the 23 stored bits of a mantissa.
_KEPT_BITS = -(2**13)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` for matrices (..., rows, inner) and (..., inner, columns) in their own precision.

    Where the device would round float32 factors to TF32, each is cut into three parts that TF32
    holds exactly, and the six products of parts that matter are added.
    """
    if a.dtype == torch.float32 and rounds_to_tf32(a.device):
        product: Tensor = _ProductOfParts.apply(a, b)
        return product
    if torch.compiler.is_compiling():
        # The comparisons below would fix sizes that a compiler leaves open.
        return a @ b
    # ``a @ b`` with fewer steps, which take as long as the arithmetic on few tokens.
    if a.ndim == 3 and a.shape[0] == b.shape[0]:
        return torch.bmm(a, b)
    if a.ndim == 4 and a.shape[:2] == b.shape[:2]:
        return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, a.shape[:2])
    return a @ b


def scaled_sum(c: Tensor, a: Tensor, b: Tensor, *, beta: float, alpha: float) -> Tensor:
    """``beta * c + alpha * a @ b``, as ``torch.baddbmm``, with the digits of ``matmul``."""
    if a.dtype != torch.float32 or not rounds_to_tf32(a.device):
        return torch.baddbmm(c, a, b, beta=beta, alpha=alpha)
    return beta * c + alpha * matmul(a, b)


def rounds_to_tf32(device: torch.device) -> bool:
    """Whether products of float32 matrices on ``device`` are computed in TF32."""
    if device.type != "cuda" or torch.compiler.is_compiling():
        # Compilers cannot trace the question: products in their graphs follow the flags.
        return False
    flags = torch.backends.cuda.matmul
    # Since torch 2.9 the flag has three values, and the old one may not be read beside it.
    precision = getattr(flags, "fp32_precision", None)
    if precision is None:
        return bool(flags.allow_tf32)
    if precision == "none":
        precision = torch.backends.fp32_precision  # type: ignore[attr-defined]
    return bool(precision == "tf32")


class _ProductOfParts(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        (a1, a2, a3), (b1, b2, b3) = _parts(a), _parts(b)
        small = a1 @ b3 + a2 @ b2 + a3 @ b1
        return small + (a1 @ b2 + a2 @ b1) + a1 @ b1

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return (
            matmul(grad, b.mT).sum_to_size(a.shape),
            matmul(a.mT, grad).sum_to_size(b.shape),
        )


def _parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first = _truncated(x)
    second = _truncated(x - first)
    return first, second, x - first - second


def _truncated(x: Tensor) -> Tensor:
    return (x.view(torch.int32) & _KEPT_BITS).view(torch.float32)
