"""Which compiler traces a call, and calling an autograd function under each of them."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.torch_version import TorchVersion

# The Dynamo of 2.6 does not trace what settles a symbol, and has no ``is_exporting``.
_LATER_THAN_2_6 = TorchVersion(torch.__version__) >= "2.7"


def is_compiled() -> bool:
    """Whether ``torch.compile`` traces the call."""
    exporting = _LATER_THAN_2_6 and torch.compiler.is_exporting()
    return torch.compiler.is_dynamo_compiling() and not exporting


def is_exported() -> bool:
    """Whether ``torch.export`` does, whose graphs run where softattn is not installed."""
    return torch.compiler.is_compiling() and not is_compiled()


def settles_symbols() -> bool:
    """Whether a compiler traces the call that can put numbers for its symbols."""
    return _LATER_THAN_2_6 and torch.compiler.is_compiling()


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply``, or its bare forward where no argument asks for a derivative.

    ``apply`` looks its function's signature up at every call, which takes as long as the
    arithmetic on a few hundred tokens.
    """
    if not _LATER_THAN_2_6 and torch.compiler.is_dynamo_compiling():
        # The Inductor of 2.6 computes wrong gradients in its graphs.
        return torch.compiler.disable(_apply)(function, *arguments)
    return _apply(function, *arguments)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    backward = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if not (backward or is_transformed() or any(map(_has_tangent, tensors))):
        return function.forward(*arguments)
    return function.apply(*_each_tensor_once(arguments))


def is_transformed() -> bool:
    """Whether ``torch.func`` transforms the call, which hides what an outer derivative asks for."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None


def _has_tangent(tensor: Tensor) -> bool:
    return unpack_dual(tensor).tangent is not None


def _each_tensor_once(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments as Dynamo takes them: where a tensor comes twice, once as a view of itself."""
    if not torch.compiler.is_compiling():
        return arguments
    once: list[Any] = []
    for argument in arguments:
        repeated = isinstance(argument, Tensor) and any(argument is other for other in once)
        once.append(argument.view_as(argument) if repeated else argument)
    return tuple(once)
