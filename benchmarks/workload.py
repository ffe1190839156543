"""The tokens that the rivals of ``benchmarks.scaling`` are given."""

import argparse
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.arguments import DTYPES, common_parser, positive_int
from softattn import AvgPoolLandmarks

MODES = ("forward", "forward+backward")
NORMALIZATIONS = ("landmark", "none", "token")
IMPLEMENTATIONS = ("auto", "eager", "triton")

# What stands where the command line is silent. A GPU gets enough tokens in all to be busy at any
# n, and tensors far larger than its caches.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"dtype": "float32", "heads": 2, "head_dim": 32, "landmarks": 49},
    "cuda": {"dtype": "bfloat16", "heads": 8, "head_dim": 64, "landmarks": 64},
}
_CUDA_TOTAL_TOKENS = 2**22


@dataclass(frozen=True)
class Workload:
    """Everything that decides the inputs of one cell."""

    tokens: int
    batch: int
    heads: int
    head_dim: int
    landmarks: int
    normalization: str
    impl: str
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


def workload_parser(description: str) -> argparse.ArgumentParser:
    """A parser of a workload's options but --tokens, and of those that all commands share."""
    parser = common_parser(description, tuple(DTYPES), cuda_dtype=_DEFAULTS["cuda"]["dtype"])
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--batch",
        type=positive_int,
        help="batch size, the same at every n (default: 1, on CUDA by --total-tokens)",
    )
    size.add_argument(
        "--total-tokens",
        type=positive_int,
        metavar="T",
        help="batch × heads × n: at every n the batch is the least that reaches T, so that small "
        f"n keep the device as busy as large ones (default on CUDA: {_CUDA_TOTAL_TOKENS})",
    )
    _add_by_device(parser, "heads", "attention heads")
    _add_by_device(parser, "head_dim", "features of a head")
    _add_by_device(parser, "landmarks", "m, of one head")
    parser.add_argument(
        "--normalization", choices=NORMALIZATIONS, default="landmark", help="of softattn"
    )
    parser.add_argument(
        "--impl",
        choices=IMPLEMENTATIONS,
        default="auto",
        help="of softattn; what is named and cannot run fails, auto takes what runs",
    )
    return parser


def _add_by_device(parser: argparse.ArgumentParser, name: str, text: str) -> None:
    cpu, cuda = (_DEFAULTS[device][name] for device in ("cpu", "cuda"))
    parser.add_argument(
        f"--{name.replace('_', '-')}",
        type=positive_int,
        help=f"{text} (default: {cpu}, on CUDA {cuda})",
    )


def fill_in_defaults(args: argparse.Namespace) -> None:
    """Puts the device's defaults where the command line left a workload's options open."""
    for name, value in _DEFAULTS[args.device].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.batch is None and args.total_tokens is None:
        if args.device == "cuda":
            args.total_tokens = _CUDA_TOTAL_TOKENS
        else:
            args.batch = 1


def workload_of(args: argparse.Namespace, tokens: int) -> Workload:
    """The workload that options, parsed and filled in, ask for at a number of tokens."""
    if args.total_tokens is None:
        batch = args.batch
    else:
        batch = math.ceil(args.total_tokens / (args.heads * tokens))
    return Workload(
        tokens=tokens,
        batch=batch,
        heads=args.heads,
        head_dim=args.head_dim,
        landmarks=args.landmarks,
        normalization=args.normalization,
        impl=args.impl,
        dtype=args.dtype,
        device=args.device,
        seed=args.seed,
    )
