"""What the swaps share: projections carried over, and the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SwapReport:
    """Which attention modules were swapped and which were not; ``print`` writes it out.

    swapped: the names of the swapped modules; each with the options that it lost, or "".
    left_alone: the names of the other modules, each with the reason.
    notes: statements about all swapped modules.
    """

    swapped: Mapping[str, str]
    left_alone: Mapping[str, str]
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        """A line for each note and each module."""
        lines = [f"swapped {len(self.swapped)}, left alone {len(self.left_alone)}"]
        lines += [f"  {note}" for note in self.notes]
        lines += [
            f"  {name}: swapped" + (rest and f" {rest}") for name, rest in self.swapped.items()
        ]
        lines += [f"  {name}: left alone, {reason}" for name, reason in self.left_alone.items()]
        return "\n".join(lines)


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear map with copies of ``weight`` (out, in) and ``bias`` (out,).

    A copy is frozen where its original is.
    """
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
    linear.weight = _copy(weight)
    if bias is not None:
        linear.bias = _copy(bias)
    return linear


def tied(of_queries: Tensor, of_keys: Tensor) -> Tensor:
    """The parameter that queries and keys share: the mean of theirs."""
    return torch.lerp(of_queries, of_keys, 0.5)


def _copy(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
