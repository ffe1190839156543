"""Softmax attention as PyTorch computes it, with keys = queries."""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.attention_call import AttentionCall
from benchmarks.workload import AttentionInputs, Workload


def call_sdpa(workload: Workload) -> AttentionCall:
    """SDPA by the backend that PyTorch chooses."""
    x = AttentionInputs.of(workload)

    def forward() -> Tensor:
        return scaled_dot_product_attention(x.query, x.query, x.value)

    return AttentionCall(forward, (x.query, x.value), x.grad_output)


def call_sdpa_flash(workload: Workload) -> AttentionCall:
    """SDPA by its flash backend, which raises where it cannot run."""
    return _sdpa_by(SDPBackend.FLASH_ATTENTION, workload)


def call_sdpa_cudnn(workload: Workload) -> AttentionCall:
    """SDPA by its cuDNN backend, which raises where it cannot run."""
    return _sdpa_by(SDPBackend.CUDNN_ATTENTION, workload)


def call_flex_attention(workload: Workload) -> AttentionCall:
    """FlexAttention without a score or mask function, compiled for the workload's shapes alone."""
    # Imported here for the seconds that it takes.
    from torch.nn.attention.flex_attention import flex_attention

    x = AttentionInputs.of(workload)
    # Uncompiled it would write out n × n: with fullgraph it raises instead.
    compiled = torch.compile(flex_attention, fullgraph=True, dynamic=False)

    def forward() -> Tensor:
        output: Tensor = compiled(x.query, x.query, x.value)
        return output

    return AttentionCall(forward, (x.query, x.value), x.grad_output)


def _sdpa_by(backend: SDPBackend, workload: Workload) -> AttentionCall:
    x = AttentionInputs.of(workload)

    def forward() -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(x.query, x.query, x.value)

    return AttentionCall(forward, (x.query, x.value), x.grad_output)
