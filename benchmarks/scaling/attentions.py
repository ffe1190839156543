"""The attentions that ``benchmarks.scaling`` compares, as calls on the tokens of a workload.

All are self-attention: the keys are the queries.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import softattn
from benchmarks.common.arguments import DTYPES
from benchmarks.common.calls import Call
from benchmarks.scaling.formula import soft_attention
from benchmarks.scaling.workload import AttentionInputs, Workload

# Makes the call for a workload.
Prepare = Callable[[Workload], Call]


def through_landmarks(make: Callable[[Workload], Callable[..., Tensor]]) -> Prepare:
    """The attention that ``make`` returns, called with queries, values and landmarks."""

    def prepare(workload: Workload) -> Call:
        attention, x = make(workload), AttentionInputs.of(workload)
        inputs = (x.query, x.value, x.landmarks)
        return Call(lambda: attention(*inputs), inputs, x.grad_output)

    return prepare


def over_all_tokens(make: Callable[[Workload], Callable[..., Tensor]]) -> Prepare:
    """The attention that ``make`` returns, called with queries, keys and values."""

    def prepare(workload: Workload) -> Call:
        attention, x = make(workload), AttentionInputs.of(workload)
        inputs = (x.query, x.value)
        return Call(lambda: attention(x.query, x.query, x.value), inputs, x.grad_output)

    return prepare


def softmax_free(workload: Workload, impl: str | None = None) -> Callable[..., Tensor]:
    """The operator of softattn, by the implementation that the workload names unless given."""

    def attention(query: Tensor, value: Tensor, landmarks: Tensor) -> Tensor:
        return softattn.softmax_free_attention(
            query,
            None,
            value,
            landmarks,
            normalization=workload.normalization,
            impl=workload.impl if impl is None else impl,
        )

    return attention


def formula(workload: Workload) -> Callable[..., Tensor]:
    """The formula of the workload's operator in plain PyTorch."""
    return partial(soft_attention, normalization=workload.normalization)


def formula_compiled(workload: Workload) -> Callable[..., Tensor]:
    """The same through ``torch.compile``, for the shapes of the workload alone."""
    # Without fullgraph, what cannot be compiled would run uncompiled without a word.
    return torch.compile(formula(workload), fullgraph=True, dynamic=False)


def sdpa(workload: Workload, backend: SDPBackend | None = None) -> Callable[..., Tensor]:
    """PyTorch's SDPA; a backend that cannot run raises."""
    if backend is None:
        return scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(query, key, value)

    return attention


def flex_attention(workload: Workload) -> Callable[..., Tensor]:
    """FlexAttention without a score or mask function, compiled for the workload's shapes alone."""
    # Imported here because it takes seconds.
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled it would hold n × n numbers; with fullgraph it raises instead.
    return torch.compile(flex_attention, fullgraph=True, dynamic=False)


def gaussian_dense(workload: Workload) -> Callable[..., Tensor]:
    """Exact Gaussian attention with its n × n kernel in memory."""
    return partial(softattn.reference.gaussian_attention, normalize=_normalizes(workload))


def gaussian_streamed(workload: Workload) -> Callable[..., Tensor]:
    """Exact Gaussian attention in linear memory."""
    return partial(softattn.gaussian_attention, normalize=_normalizes(workload))


def _normalizes(workload: Workload) -> bool:
    """Whether the exact attention behind the workload's normalization divides by row sums."""
    return workload.normalization in ("token", "softmax")


def nystrom_attention(workload: Workload) -> Call:
    """The module of the package nystrom-attention, on (batch, n, heads · d)."""
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
    x = workload.normal(*shape).requires_grad_()
    return Call(lambda: module(x), (x,), workload.normal(*shape))


def flash_linear_attention(workload: Workload) -> Call:
    """Causal linear attention O_i = s Σ_j≤i (q_i · k_j) v_j in chunks, on (batch, n, heads, d)."""
    from fla.ops.linear_attn import chunk_linear_attn

    torch.manual_seed(workload.seed)
    shape = (workload.batch, workload.tokens, workload.heads, workload.head_dim)
    query, value = (workload.normal(*shape).requires_grad_() for _ in range(2))
    return Call(
        lambda: chunk_linear_attn(query, query, value, normalize=False)[0],
        (query, value),
        workload.normal(*shape),
    )
