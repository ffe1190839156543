"""Unvalidated, unoptimised references: attention written as in the papers.

They take O(n²) time or hold whole blocks, and share no code with what is tested against them.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def gaussian_kernel(query: Tensor, key: Tensor, scale: float | None = None) -> Tensor:
    """k(x, y) = exp(−s ‖x − y‖² / 2), s = 1/√d: (..., n_q, d), (..., n_k, d) → (..., n_q, n_k)."""
    s = query.shape[-1] ** -0.5 if scale is None else scale
    distance = torch.cdist(query, key, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.exp(-s * distance.square() / 2)


def gaussian_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    normalize: bool = False,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """k(Q, K) V, or the same over the row sums of k(Q, K), without the padded keys.

    Shapes (batch, heads, n_q, d), (batch, heads, n_k, d), (batch, heads, n_k, d_v) and
    (batch, n_k) → (batch, heads, n_q, d_v).
    """
    kernel = gaussian_kernel(query, key, scale)
    if key_padding_mask is not None:
        kernel = kernel.masked_fill(key_padding_mask[:, None, None, :], 0)
    if normalize:
        kernel = kernel / kernel.sum(-1, keepdim=True)
    return torch.einsum("bhij,bhjd->bhid", kernel, value)


def softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """softmax(s Q Kᵀ) V without the padded keys, s = 1/√d; shapes as above."""
    s = query.shape[-1] ** -0.5 if scale is None else scale
    logits = s * torch.einsum("bhid,bhjd->bhij", query, key)
    if key_padding_mask is not None:
        logits = logits.masked_fill(key_padding_mask[:, None, None, :], -torch.inf)
    return torch.einsum("bhij,bhjd->bhid", logits.softmax(-1), value)


def softmax_free_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    *,
    normalization: str = "token",
    ridge: float = 0.01,
    scale: float | None = None,
    runs: Tensor | None = None,
    inverse: Callable[[Tensor], Tensor] = torch.linalg.inv,
) -> Tensor:
    """Softmax-free attention through landmarks, with every block written out.

    Shapes as in ``softattn.softmax_free_attention``; ``key=None`` is self-attention. ``runs``,
    (batch, heads, n), is the number of each token's run of a near field; by default each token is
    a run of its own.
    """
    # 1. The three blocks of the Nyström factorisation.
    p_q = gaussian_kernel(query, landmarks, scale)
    p_k = gaussian_kernel(query if key is None else key, landmarks, scale)
    a = gaussian_kernel(landmarks, landmarks, scale)
    # 2. A⁺, scaled on both sides by the row sums of A for "landmark".
    a_pinv = inverse(a + ridge * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device))
    if normalization == "landmark":
        d = a.sum(-1)
        a_pinv = torch.einsum("bhi,bhij,bhj->bhij", d**-0.5, a_pinv, d**-0.5)
    # 3. For "softmax" the weights exp(s ‖k_j‖² / 2) of the keys, their logarithms within 8.
    weights = p_k.new_ones(p_k.shape[:-1])
    if normalization == "softmax" and weights.numel():
        s = query.shape[-1] ** -0.5 if scale is None else scale
        moved = query if key is None else key - key.mean(2, keepdim=True)
        logarithm = s * moved.square().sum(-1) / 2
        spread = logarithm.amax(-1, keepdim=True) - logarithm.amin(-1, keepdim=True)
        logarithm = logarithm * (8 / spread.clamp(min=8))
        weights = torch.exp(logarithm - logarithm.amax(-1, keepdim=True))
        if key is not None:
            p_q = gaussian_kernel(query + key.mean(2, keepdim=True), landmarks, scale)
    # 4. The approximated n × n matrix.
    kernel = torch.einsum("bhim,bhml,bhjl->bhij", p_q, a_pinv, p_k)
    # 5. For "token" and "softmax" the exact kernel within runs, then rows that sum to 1.
    if normalization in ("token", "softmax"):
        if key is None:
            runs = torch.arange(query.shape[2], device=query.device) if runs is None else runs
            in_one_run = runs.unsqueeze(-1) == runs.unsqueeze(-2)
            kernel = torch.where(in_one_run, gaussian_kernel(query, query, scale), kernel)
        kernel = kernel * weights.unsqueeze(-2)
        kernel = kernel / kernel.sum(-1, keepdim=True)
    return torch.einsum("bhij,bhjd->bhid", kernel, value)
