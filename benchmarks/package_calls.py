"""Attentions of other packages, each where it is installed."""

import torch
from torch import Tensor

from benchmarks.arguments import DTYPES
from benchmarks.attention_call import AttentionCall
from benchmarks.workload import Workload


def call_nystrom_attention(workload: Workload) -> AttentionCall:
    """The module of nystrom-attention, on (batch, n, heads · d)."""
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
    return AttentionCall(lambda: module(x), (x,), workload.tensor(*shape))


def call_flash_linear_attention(workload: Workload) -> AttentionCall:
    """Causal linear attention O_i = s Σ_j≤i (q_i · k_j) v_j in chunks, on (batch, n, heads, d)."""
    from fla.ops.linear_attn import chunk_linear_attn

    torch.manual_seed(workload.seed)
    shape = (workload.batch, workload.tokens, workload.heads, workload.head_dim)
    query, value = (workload.tensor(*shape).requires_grad_() for _ in range(2))

    def forward() -> Tensor:
        output, _ = chunk_linear_attn(query, query, value, normalize=False)
        return output

    return AttentionCall(forward, (query, value), workload.tensor(*shape))
