"""What the registrations of the operators share."""

import math
from typing import Any

import torch
from torch import Tensor


def register_gradient(operator: Any, gradient: Any) -> None:
    """Makes ``gradient`` the derivative of ``operator``; ``gradient`` itself has none.

    Both take tensors first and options last. ``gradient`` takes the gradient of the first output,
    the tensors, all outputs and the options. It returns gradients of the first tensors, in their
    order, and ignored ones for tensors that are None.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        tensors = [argument for argument in inputs if argument is None or torch.is_tensor(argument)]
        ctx.options = inputs[len(tensors) :]
        ctx.number = len(inputs)
        # The gradients of all outputs but the first are not used: none is filled with zeros.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *outputs)

    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients = gradient(grad, *ctx.saved_tensors, *ctx.options)
        of_tensors = zip(gradients, ctx.saved_tensors, strict=False)
        returned = [None if tensor is None else gradient for gradient, tensor in of_tensors]
        return (*returned, *(None,) * (ctx.number - len(returned)))

    operator.register_autograd(backward, setup_context=save)
    gradient.register_autograd(refuse_second_derivative)


def refuse_second_derivative(ctx: Any, *grads: Tensor) -> None:
    """The gradient of a gradient operator, which raises and names the alternative."""
    raise NotImplementedError(
        "the gradients of softattn's Triton kernels cannot be differentiated again; use "
        "impl='eager', whose gradients can"
    )


def rate_of(scale: float) -> float:
    """s log₂(e) / 2, with which k(x, y) = 2^(−rate ‖x − y‖²)."""
    return scale * math.log2(math.e) / 2


def center_of(tokens: Tensor) -> Tensor | None:
    """What is subtracted from float32 tokens; in half precision this would lose digits."""
    from softattn import kernels

    return kernels.median_token(tokens) if tokens.dtype == torch.float32 else None


def or_empty(tensor: Tensor | None, like: Tensor) -> Tensor:
    """The tensor, or an empty one on the device of ``like``: operators return tensors only."""
    return torch.empty(0, device=like.device) if tensor is None else tensor


def contiguous_like(tensor: Tensor) -> Tensor:
    """Memory for an output of the shape of ``tensor``, whatever its strides."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
