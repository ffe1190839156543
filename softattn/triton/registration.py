"""What the registrations of the operators share.

They use ``torch.library.Library`` instead of ``torch.library.custom_op``, which takes as long for a
derivative as for all launches of a call.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable imports Dynamo at once

from softattn.common.compiler import is_transformed
from softattn.triton.recording import Recorded

_LIBRARY = torch.library.Library("softattn", "FRAGMENT")


def operator(implementation: Callable[..., Any]) -> Any:
    """Registers a function as ``softattn::<its name>``. Its annotations are the schema."""
    name = implementation.__name__
    schema = torch.library.infer_schema(implementation, mutates_args=())
    # Outputs are stored in the order of inputs, which Inductor must not change after tracing.
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
    _LIBRARY.define(name + schema, tags=tags)
    # Dynamo must not compile what an operator does.
    opaque = _disable_dynamo(Recorded(implementation))
    _LIBRARY.impl(name, opaque, "CompositeExplicitAutograd")
    return getattr(torch.ops.softattn, name).default


def shapes_of(operator: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates what gives compilers the shapes of an operator's outputs."""
    return torch.library.register_fake(operator.name(), lib=_LIBRARY)


def differentiate(
    operator: Any, save: Callable[[Any, Any, Any], None], backward: Callable[..., Any]
) -> None:
    """Makes ``backward`` the derivative of ``operator``.

    Args:
        operator: takes positional arguments alone.
        save: ``(ctx, inputs, outputs)``, as ``setup_context`` of an autograd function.
        backward: ``(ctx, *gradients)``, as ``backward`` of one; the gradients of outputs that were
            not used are None.
    """

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            outputs = without_derivative(*inputs)
            ctx.set_materialize_grads(False)
            save(ctx, inputs, outputs)
            return outputs

    Differentiable.backward = staticmethod(backward)  # type: ignore[method-assign]
    Differentiable.__name__ = f"{operator.name()} backward"

    def without_derivative(*inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*inputs)

    def dispatch(*inputs: Any) -> Any:
        tensors = (x for x in inputs if isinstance(x, Tensor))
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            refuse_transforms()
            return Differentiable.apply(*inputs)
        return without_derivative(*inputs)

    _LIBRARY.impl(operator.name().split("::")[1], dispatch, "Autograd")


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
        ctx.save_for_backward(*tensors, *outputs)
        ctx.mark_non_differentiable(*outputs[1:])

    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # activation checkpointing lets them be read once
        gradients = gradient(grad, *saved, *ctx.options)
        of_tensors = zip(gradients, saved, strict=False)
        returned = [None if tensor is None else gradient for gradient, tensor in of_tensors]
        return (*returned, *(None,) * (ctx.number - len(returned)))

    differentiate(operator, save, backward)
    refuse_second_derivative(gradient)


def refuse_second_derivative(gradient: Any) -> None:
    """Makes the derivative of a gradient operator raise and name the alternative."""

    def backward(ctx: Any, *_: Tensor) -> None:
        raise NotImplementedError(
            "the gradients of softattn's Triton kernels cannot be differentiated again; use "
            "impl='eager', whose gradients can"
        )

    differentiate(gradient, lambda *_: None, backward)


def refuse_transforms() -> None:
    """Raises where ``torch.func`` would differentiate a call, and names the alternative."""
    if is_transformed():
        raise NotImplementedError(
            "torch.func cannot differentiate softattn's Triton kernels; use impl='eager'"
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
    return like.new_empty(0, dtype=torch.float32) if tensor is None else tensor


def rows_like(columns: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for an output that is stored as (batch, heads, n, any) ``like`` is."""
    from softattn import kernels

    return kernels.empty_rows(columns, like, dtype)


def contiguous_like(tensor: Tensor) -> Tensor:
    """Memory for an output of the shape of ``tensor``, whatever its strides."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
