"""What is timed: a forward pass, alone or with its backward pass."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MODES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Call:
    """A forward pass on given inputs, and what its backward pass needs.

    inputs: what gradients are taken to.
    grad_output: the gradient of the output, ones where it is None.
    """

    forward: Callable[[], Tensor]
    inputs: tuple[Tensor, ...]
    grad_output: Tensor | None = None

    def run(self, mode: str) -> Tensor | tuple[Tensor, ...]:
        """Runs one of ``MODES``: returns the output, or the gradients."""
        if mode == "forward":
            with torch.no_grad():
                return self.forward()
        output = self.forward()
        grad_output = torch.ones_like(output) if self.grad_output is None else self.grad_output
        return torch.autograd.grad(output, self.inputs, grad_output)
