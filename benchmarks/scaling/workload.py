"""The size of a cell of ``benchmarks.scaling``, and the tokens that every attention gets there."""

import argparse
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.arguments import DTYPES, common_parser, positive_int
from benchmarks.common.token_maps import INPUTS, Grid, grid_of, queries_and_values
from benchmarks.common.traffic import NORMALIZATIONS, traffic_elements
from softattn import AvgPoolLandmarks

IMPLEMENTATIONS = ("auto", "eager", "triton")

# Defaults by device. A GPU gets enough tokens in all to be busy at any n, and tensors far larger
# than its caches.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"dtype": "float32", "heads": 2, "head_dim": 32, "landmarks": 49},
    "cuda": {"dtype": "bfloat16", "heads": 8, "head_dim": 64, "landmarks": 64},
}
_CUDA_TOTAL_TOKENS = 2**22


@dataclass(frozen=True)
class Workload:
    """Everything that determines the inputs of one cell."""

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
    input: str

    @property
    def grid(self) -> Grid:
        """The map whose pixels are the tokens."""
        return grid_of(self.tokens)

    def traffic_bytes(self, mode: str) -> int:
        """Bytes that one call of softattn's self-attention must read and write."""
        features = self.batch * self.heads * self.tokens * self.head_dim
        elements = traffic_elements(self.normalization, mode) * features
        return elements * DTYPES[self.dtype].itemsize

    def normal(self, *shape: int) -> Tensor:
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
        """The workload's tokens, the same in each batch item, and the means of their cells."""
        torch.manual_seed(workload.seed)
        drawn = queries_and_values(
            workload.input,
            workload.grid,
            heads=workload.heads,
            head_dim=workload.head_dim,
            generator=torch.Generator().manual_seed(workload.seed),
        )
        dtype = DTYPES[workload.dtype]
        query, value = (x.to(workload.device, dtype).repeat(workload.batch, 1, 1, 1) for x in drawn)
        landmarks = AvgPoolLandmarks(workload.landmarks)(query, workload.grid)
        for leaf in (query, value, landmarks):
            leaf.requires_grad_()
        return cls(query, value, landmarks, workload.normal(*value.shape))


def workload_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of the options of a workload other than --tokens, and of the common options."""
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
        help="batch × heads × n: the batch at every n is the least that reaches T, so that small "
        f"n keep the device as busy as large ones (default on CUDA: {_CUDA_TOTAL_TOKENS})",
    )
    for name, text in (
        ("heads", "attention heads"),
        ("head_dim", "features of a head"),
        ("landmarks", "m, of one head"),
    ):
        cpu, cuda = (_DEFAULTS[device][name] for device in ("cpu", "cuda"))
        text = f"{text} (default: {cpu}, on CUDA {cuda})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=positive_int, help=text)
    add = parser.add_argument
    add("--normalization", choices=NORMALIZATIONS, default="token", help="of softattn")
    add("--impl", choices=IMPLEMENTATIONS, default="auto", help="of softattn")
    add("--input", choices=INPUTS, default="photograph", help="the tokens; matters to the error")
    return parser


def fill_in_defaults(args: argparse.Namespace) -> None:
    """Sets the options of a workload that the command line does not give, by device."""
    for name, value in _DEFAULTS[args.device].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.batch is None and args.total_tokens is None:
        if args.device == "cuda":
            args.total_tokens = _CUDA_TOTAL_TOKENS
        else:
            args.batch = 1


def workload_of(args: argparse.Namespace, tokens: int) -> Workload:
    """The workload at a number of tokens, from options with their defaults filled in."""
    batch = args.batch
    if args.total_tokens is not None:
        batch = math.ceil(args.total_tokens / (args.heads * tokens))
    names = ("heads", "head_dim", "landmarks", "normalization", "impl", "dtype", "device")
    options = {name: getattr(args, name) for name in (*names, "seed", "input")}
    return Workload(tokens=tokens, batch=batch, **options)
