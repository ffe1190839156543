"""Softmax-free attention as softattn and the paper's formula compute it, and the exact Gaussian."""

from dataclasses import replace

import torch
from torch import Tensor

import softattn
from benchmarks.attention_call import AttentionCall
from benchmarks.paper_formula import soft_attention
from benchmarks.workload import AttentionInputs, Workload


def call_softattn(workload: Workload) -> AttentionCall:
    """The operator of softattn by the implementation that the workload names."""
    x = AttentionInputs.of(workload)

    def forward() -> Tensor:
        return softattn.softmax_free_attention(
            x.query,
            None,
            x.value,
            x.landmarks,
            normalization=workload.normalization,
            impl=workload.impl,
        )

    return AttentionCall(forward, (x.query, x.value, x.landmarks), x.grad_output)


def call_softattn_eager(workload: Workload) -> AttentionCall:
    """The operator of softattn in plain PyTorch, whatever the workload names."""
    return call_softattn(replace(workload, impl="eager"))


def call_paper_formula(workload: Workload) -> AttentionCall:
    """The formula of SOFT in plain PyTorch."""
    x = AttentionInputs.of(workload)

    def forward() -> Tensor:
        return soft_attention(x.query, x.value, x.landmarks)

    return AttentionCall(forward, (x.query, x.value, x.landmarks), x.grad_output)


def call_paper_formula_compiled(workload: Workload) -> AttentionCall:
    """The formula of SOFT through ``torch.compile``, for the workload's shapes alone."""
    x = AttentionInputs.of(workload)
    # With fullgraph what cannot be compiled raises, where it would quietly run uncompiled.
    compiled = torch.compile(soft_attention, fullgraph=True, dynamic=False)

    def forward() -> Tensor:
        return compiled(x.query, x.value, x.landmarks)

    return AttentionCall(forward, (x.query, x.value, x.landmarks), x.grad_output)


def call_gaussian_dense(workload: Workload) -> AttentionCall:
    """Exact Gaussian attention with its n × n kernel in memory."""
    x = AttentionInputs.of(workload)

    def forward() -> Tensor:
        return softattn.reference.gaussian_attention(x.query, x.query, x.value)

    return AttentionCall(forward, (x.query, x.value), x.grad_output)


def call_gaussian_streamed(workload: Workload) -> AttentionCall:
    """Exact Gaussian attention in linear memory."""
    x = AttentionInputs.of(workload)

    def forward() -> Tensor:
        return softattn.gaussian_attention(x.query, None, x.value)

    return AttentionCall(forward, (x.query, x.value), x.grad_output)
