"""Functions whose intermediate results are computed again for each derivative."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softattn.common.compiler import apply


def recomputed(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """``function(*tensors)``, which keeps the tensors alone for its derivatives of any order.

    ``function`` must take all tensors as arguments: transforms do not see those in its closure.
    """
    outputs: tuple[Tensor, ...] = apply(_Recomputed, function, *tensors)
    return outputs


class _Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.function, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        function, number = ctx.function, len(ctx.saved_tensors)

        def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
            pull_back = torch.func.vjp(function, *tensors[:number])[1]
            pulled: tuple[Tensor, ...] = pull_back(tensors[number:])
            return pulled

        return None, *recomputed(gradients, *ctx.saved_tensors, *grads)
