"""One step of Lloyd's algorithm and its gradient, the same for both backends."""

from typing import Any

import torch
from torch import Tensor, nn

from softattn.backends.selection import select_backend
from softattn.common.compiler import apply
from softattn.common.ranks import sum_over_ranks
from softattn.common.rows import rows_at


def lloyd_step(
    tokens: Tensor,
    landmarks: Tensor,
    *,
    key_padding_mask: Tensor | None,
    landmark_padding_mask: Tensor | None,
    impl: str,
    group: str | None = None,
) -> Tensor:
    """Moves each landmark to the mean of the tokens that are nearest to it; one without stays.

    The gradient flows through the means. The choice of the nearest landmark is a constant.

    Args:
        tokens: (batch, heads, n, d), zero where they are padding.
        landmarks: (batch, heads, m, d).
        key_padding_mask: (batch, n), True where a token is padding.
        landmark_padding_mask: (batch, m), True where a landmark is padding, which stays.
        impl: ``"eager"``, ``"triton"`` or ``"auto"``.
        group: the name of a process group whose ranks share the tokens, or None.

    Returns:
        (batch, heads, m, d), float32, or float64 for float64 tokens.
    """
    backend = select_backend(impl, tokens, None, landmarks)
    labels = backend.nearest_landmarks(
        tokens.detach(), landmarks.detach(), key_padding_mask, landmark_padding_mask
    )
    sums, counts = apply(_ClusterSums, tokens, labels, landmarks.shape[2], impl)
    if group is not None:
        both = sum_over_ranks(torch.cat([sums, counts], -1), group)
        sums, counts = both.split([sums.shape[-1], 1], -1)
    return torch.where(counts > 0, sums / counts.clamp(min=1), landmarks.to(sums.dtype))


class _ClusterSums(torch.autograd.Function):
    """The sum and the number of the tokens of each cluster."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tokens: Tensor, labels: Tensor, m: int, impl: str) -> tuple[Tensor, Tensor]:
        return select_backend(impl, tokens).cluster_sums(tokens, labels, m)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        tokens, labels, _, ctx.impl = inputs
        ctx.dtype = tokens.dtype
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(labels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (labels,) = ctx.saved_tensors
        rows = _RowsOfClusters.apply(grad.to(ctx.dtype), labels, ctx.impl)
        return rows, None, None, None


class _RowsOfClusters(torch.autograd.Function):
    """For each token the row of its cluster, 0 for padding: the adjoint of ``_ClusterSums``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, labels: Tensor, impl: str) -> Tensor:
        return rows_at(nn.functional.pad(rows, (0, 0, 0, 1)), labels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        rows, labels, ctx.impl = inputs
        ctx.m, ctx.dtype = rows.shape[-2], rows.dtype
        ctx.save_for_backward(labels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (labels,) = ctx.saved_tensors
        sums, _ = _ClusterSums.apply(grad, labels, ctx.m, ctx.impl)
        return sums.to(ctx.dtype), None, None
