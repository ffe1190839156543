"""Calling an autograd function for no more than it is needed for."""

from typing import Any

import torch
from torch import Tensor


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply``, or its bare forward where no argument asks for a gradient.

    ``apply`` looks its function's signature up at every call, which takes as long as the
    arithmetic on a few hundred tokens.
    """
    differentiable = torch.is_grad_enabled() and any(
        isinstance(argument, Tensor) and argument.requires_grad for argument in arguments
    )
    return (function.apply if differentiable else function.forward)(*arguments)
