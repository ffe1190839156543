"""Calling an autograd function for no more than it is needed for."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply``, or its bare forward where no argument asks for a derivative.

    ``apply`` looks its function's signature up at every call, which takes as long as the
    arithmetic on a few hundred tokens.
    """
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    backward = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    differentiable = backward or any(unpack_dual(tensor).tangent is not None for tensor in tensors)
    if not differentiable:
        return function.forward(*arguments)
    return function.apply(*_each_tensor_once(arguments))


def _each_tensor_once(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments as Dynamo takes them: where a tensor comes twice, once as a view of itself."""
    if not torch.compiler.is_compiling():
        return arguments
    once: list[Any] = []
    for argument in arguments:
        repeated = isinstance(argument, Tensor) and any(argument is other for other in once)
        once.append(argument.view_as(argument) if repeated else argument)
    return tuple(once)
