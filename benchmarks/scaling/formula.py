"""The four operators as their formulas state them, written directly in PyTorch.

The n × m block is computed once and held in memory; gradients come from autograd. ``"none"`` is
SOFT as its paper has it (NeurIPS 2021). Denominators have no floor.
"""

import torch
from torch import Tensor

RIDGE = 0.01
NEWTON_STEPS = 20


def soft_attention(query: Tensor, value: Tensor, landmarks: Tensor, normalization: str) -> Tensor:
    """O of self-attention: (b, h, n, d), (b, h, n, d_v), (b, h, m, d) → (b, h, n, d_v)."""
    # 1. Queries, which are the keys too, over d^¼.
    root = query.shape[-1] ** 0.25
    query, landmarks = query / root, landmarks / root
    # 2. The two blocks of the kernel.
    p = gaussian(query, landmarks)
    a = gaussian(landmarks, landmarks)
    # 3. A⁺ by Newton's iteration.
    a_pinv = newton_inverse(a.to(torch.promote_types(a.dtype, torch.float32))).to(a.dtype)
    # 4. From the right, so that nothing n × n appears.
    if normalization == "none":
        return p @ (a_pinv @ (p.mT @ value))
    if normalization == "landmark":
        root = a.sum(-1, keepdim=True).rsqrt()
        return p @ (root * (a_pinv @ (root * (p.mT @ value))))
    # 5. The quotient, with the exact diagonal.
    values = torch.cat([value, torch.ones_like(value[..., :1])], -1)
    if normalization == "softmax":
        log_weights = query.square().sum(-1, keepdim=True) / 2
        values = (log_weights - log_weights.amax(-2, keepdim=True)).exp() * values
    diagonal = 1 - ((p @ a_pinv) * p).sum(-1, keepdim=True)
    products = p @ (a_pinv @ (p.mT @ values)) + diagonal * values
    return products[..., :-1] / products[..., -1:]


def gaussian(x: Tensor, y: Tensor) -> Tensor:
    """exp(−‖x − y‖² / 2), with ‖x − y‖² = x² + y² − 2 x y."""
    x2 = x.square().sum(-1).unsqueeze(-1)
    y2 = y.square().sum(-1).unsqueeze(-2)
    return torch.exp(-(x2 + y2 - 2 * x @ y.mT) / 2)


def newton_inverse(a: Tensor) -> Tensor:
    """20 steps A_k+1 = 2 A_k − A_k A A_k from α A, α = 1.8 / ‖A‖₁², on A + 0.01 I."""
    one_norm = a.abs().sum(-2, keepdim=True).amax(-1, keepdim=True)
    a = a + RIDGE * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    inverse = 1.8 / one_norm.square() * a
    for _ in range(NEWTON_STEPS):
        inverse = 2 * inverse - inverse @ a @ inverse
    return inverse
