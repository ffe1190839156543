"""What the registrations of the operators share."""

import math
from typing import Any

import torch
from torch import Tensor

from softattn.common.centering import median_token


def refuse_second_derivative(ctx: Any, *grads: Tensor) -> None:
    """The gradient of a gradient operator: there is none, and where to go."""
    raise NotImplementedError(
        "the gradients of softattn's Triton kernels cannot be differentiated again; use "
        "impl='eager', whose gradients can"
    )


def rate_of(scale: float) -> float:
    """s log₂(e) / 2, with which k(x, y) = 2^(−rate ‖x − y‖²)."""
    return scale * math.log2(math.e) / 2


def center_of(tokens: Tensor) -> Tensor | None:
    """What is taken off float32 tokens; half precision would lose digits by it."""
    return median_token(tokens)[:, :, 0].contiguous() if tokens.dtype == torch.float32 else None


def or_empty(tensor: Tensor | None, like: Tensor) -> Tensor:
    """The tensor, or an empty one on the device of ``like``: operators return tensors only."""
    return torch.empty(0, device=like.device) if tensor is None else tensor


def contiguous_like(tensor: Tensor) -> Tensor:
    """Room for what a kernel writes, whatever the strides of ``tensor``."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
