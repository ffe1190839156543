"""The layer."""

from softattn.layer.module import SoftmaxFreeAttention

__all__ = ["SoftmaxFreeAttention"]
