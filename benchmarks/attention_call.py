"""A rival's attention on given inputs, as a call without arguments."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionCall:
    """A forward pass on given inputs, and what its backward pass needs."""

    forward: Callable[[], Tensor]
    inputs: tuple[Tensor, ...]
    grad_output: Tensor

    def run(self, mode: str) -> object:
        """Runs ``mode``, one of ``benchmarks.workload.MODES``."""
        if mode == "forward":
            with torch.no_grad():
                return self.forward()
        return torch.autograd.grad(self.forward(), self.inputs, self.grad_output)
