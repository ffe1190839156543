"""Ridges of Gaussian Gram matrices."""

import torch


def is_above_rounding(ridge: float, m: int, dtype: torch.dtype) -> bool:
    """Whether an elimination of A + ``ridge`` · I, A of ``m`` rows, keeps its pivots positive."""
    return ridge >= 10 * m * torch.finfo(dtype).eps
