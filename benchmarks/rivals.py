"""The attentions that ``benchmarks.scaling`` compares, each as a call without arguments."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional

import softattn
from benchmarks.arguments import DTYPES
from benchmarks.paper_formula import soft_attention
from benchmarks.workload import AttentionInputs, Workload


@dataclass(frozen=True)
class Call:
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


@dataclass(frozen=True)
class Rival:
    """An attention to measure.

    label: its name in tables and figures.
    order: its time grows as n to this power.
    dense_blocks: about how many n × n arrays it holds at once, for each mode.
    prepare: makes the call for a workload.
    note: what a reader must know to read its numbers.
    dtypes: those it runs in, all where it is empty.
    """

    label: str
    order: int
    prepare: Callable[[Workload], Call]
    note: str
    dense_blocks: tuple[int, int] = (0, 0)
    dtypes: tuple[str, ...] = ()


def _softattn(workload: Workload) -> Call:
    x = AttentionInputs.of(workload)

    def forward() -> Tensor:
        return softattn.softmax_free_attention(
            x.query, None, x.value, x.landmarks, normalization=workload.normalization
        )

    return Call(forward, (x.query, x.value, x.landmarks), x.grad_output)


def _paper_formula(workload: Workload) -> Call:
    x = AttentionInputs.of(workload)

    def forward() -> Tensor:
        return soft_attention(x.query, x.value, x.landmarks)

    return Call(forward, (x.query, x.value, x.landmarks), x.grad_output)


def _sdpa(workload: Workload) -> Call:
    x = AttentionInputs.of(workload)

    def forward() -> Tensor:
        return functional.scaled_dot_product_attention(x.query, x.query, x.value)

    return Call(forward, (x.query, x.value), x.grad_output)


def _gaussian_dense(workload: Workload) -> Call:
    x = AttentionInputs.of(workload)

    def forward() -> Tensor:
        return softattn.reference.gaussian_attention(x.query, x.query, x.value)

    return Call(forward, (x.query, x.value), x.grad_output)


def _gaussian_streamed(workload: Workload) -> Call:
    x = AttentionInputs.of(workload)

    def forward() -> Tensor:
        return softattn.gaussian_attention(x.query, None, x.value)

    return Call(forward, (x.query, x.value), x.grad_output)


def _nystrom_attention(workload: Workload) -> Call:
    from nystrom_attention import NystromAttention

    torch.manual_seed(workload.seed)
    embed_dim = workload.heads * workload.head_dim
    module = NystromAttention(
        embed_dim,
        dim_head=workload.head_dim,
        heads=workload.heads,
        num_landmarks=workload.landmarks,
        residual=False,
    ).to(device=workload.device, dtype=DTYPES[workload.dtype])
    shape = (workload.batch, workload.tokens, embed_dim)
    x = workload.tensor(*shape).requires_grad_()
    return Call(lambda: module(x), (x,), workload.tensor(*shape))


RIVALS = {
    "softattn": Rival(
        "softattn", 1, _softattn, "softmax_free_attention, landmarks given, pinv='minimax'"
    ),
    "paper_formula": Rival(
        "paper's formula", 1, _paper_formula, "SOFT in plain PyTorch, landmarks given"
    ),
    "nystrom_attention": Rival(
        "nystrom-attention*",
        1,
        _nystrom_attention,
        "the module NystromAttention of the package nystrom-attention, residual=False: its time "
        "and memory include its own input and output projections and its pooling; gradient to "
        "its input alone",
        dtypes=("float32", "float64"),
    ),
    "sdpa": Rival("SDPA", 2, _sdpa, "scaled_dot_product_attention with keys = queries"),
    "gaussian_streamed": Rival(
        "exact, streamed", 2, _gaussian_streamed, "softattn.gaussian_attention"
    ),
    "gaussian_dense": Rival(
        "exact, dense",
        2,
        _gaussian_dense,
        "softattn.reference.gaussian_attention, which writes out n × n",
        dense_blocks=(3, 6),
        dtypes=("float32", "float64"),
    ),
}


def why_missing(name: str, dtype: str) -> str | None:
    """Why a rival cannot take part, or None where it can."""
    if name == "nystrom_attention" and find_spec("nystrom_attention") is None:
        return "the package nystrom-attention is not installed"
    supported = RIVALS[name].dtypes
    if supported and dtype not in supported:
        return f"it runs in {' and '.join(supported)} only"
    return None
