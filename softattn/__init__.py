"""Softmax-free attention: linear in the number of tokens, with a batched Newton pseudo-inverse."""

from softattn import reference
from softattn.attention import (
    gaussian_attention,
    softmax_free_attention,
    softmax_free_attention_varlen,
    softmax_log_weight_range,
)
from softattn.backends.selection import Implementation, explain_impl
from softattn.factors import AttentionFactors, attention_factors
from softattn.gaussian import gaussian_kernel
from softattn.landmarks import (
    AvgPoolLandmarks,
    ConvLandmarks,
    KMeansLandmarks,
    LandmarkSampler,
)
from softattn.layer import SoftmaxFreeAttention
from softattn.pinv import NewtonPinv, PinvInfo, newton_pinv, newton_pinv_ex

__version__ = "0.1.0"

__all__ = [
    "AttentionFactors",
    "AvgPoolLandmarks",
    "ConvLandmarks",
    "Implementation",
    "KMeansLandmarks",
    "LandmarkSampler",
    "NewtonPinv",
    "PinvInfo",
    "SoftmaxFreeAttention",
    "attention_factors",
    "explain_impl",
    "gaussian_attention",
    "gaussian_kernel",
    "newton_pinv",
    "newton_pinv_ex",
    "reference",
    "softmax_free_attention",
    "softmax_free_attention_varlen",
    "softmax_log_weight_range",
]
