"""The operators in PyTorch's own operations, on any device."""

from softattn.eager.gaussian_attention import gaussian_attention
from softattn.eager.gram import gram
from softattn.eager.landmark_attention import landmark_attention

__all__ = ["gaussian_attention", "gram", "landmark_attention"]
