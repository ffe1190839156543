"""The tokens that the rivals of ``benchmarks.scaling`` are given."""

import argparse
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.arguments import DTYPES, positive_int
from softattn import AvgPoolLandmarks

MODES = ("forward", "forward+backward")
NORMALIZATIONS = ("landmark", "none", "token")


@dataclass(frozen=True)
class Workload:
    """Everything that decides the inputs of one cell."""

    tokens: int
    batch: int
    heads: int
    head_dim: int
    landmarks: int
    normalization: str
    dtype: str
    device: str
    seed: int

    def arguments(self) -> list[str]:
        """The options of ``python -m benchmarks.memory`` that give this workload."""
        words: list[str] = []
        for name, value in asdict(self).items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        return words

    def tensor(self, *shape: int) -> Tensor:
        """Normally distributed numbers of the workload's dtype, on its device."""
        return torch.randn(shape, device=self.device).to(DTYPES[self.dtype])


@dataclass(frozen=True)
class AttentionInputs:
    """Q = K and V, (batch, heads, n, d), landmarks (batch, heads, m, d), and dO shaped as V."""

    query: Tensor
    value: Tensor
    landmarks: Tensor
    grad_output: Tensor

    @classmethod
    def of(cls, workload: Workload) -> "AttentionInputs":
        """Random tokens, and as landmarks the means of runs of them."""
        torch.manual_seed(workload.seed)
        shape = (workload.batch, workload.heads, workload.tokens, workload.head_dim)
        query, value, grad_output = (workload.tensor(*shape) for _ in range(3))
        landmarks = AvgPoolLandmarks(workload.landmarks)(query)
        for leaf in (query, value, landmarks):
            leaf.requires_grad_()
        return cls(query, value, landmarks, grad_output)


def add_workload_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a workload but --tokens, and those that all commands share."""
    parser.add_argument("--batch", type=positive_int, default=1, help="batch size")
    parser.add_argument("--heads", type=positive_int, default=2, help="attention heads")
    parser.add_argument("--head-dim", type=positive_int, default=32, help="features of a head")
    parser.add_argument("--landmarks", type=positive_int, default=49, help="m, of one head")
    parser.add_argument(
        "--normalization", choices=NORMALIZATIONS, default="landmark", help="of softattn"
    )


def workload_of(args: Any, tokens: int) -> Workload:
    """The workload that parsed options ask for at a number of tokens."""
    return Workload(
        tokens=tokens,
        batch=args.batch,
        heads=args.heads,
        head_dim=args.head_dim,
        landmarks=args.landmarks,
        normalization=args.normalization,
        dtype=args.dtype,
        device=args.device,
        seed=args.seed,
    )
