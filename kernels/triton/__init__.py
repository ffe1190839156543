"""Triton kernels of softmax-free attention and of Newton's iteration, for CUDA and ROCm.

Installed as ``softattn.kernels`` and imported at the first call that runs on them. The functions
take checked tensors and launch; softattn itself checks shapes and masks and defines gradients.
"""

from softattn.kernels.clusters import cluster_sums, nearest_landmarks
from softattn.kernels.gaussian_kernel import gaussian_kernel, gaussian_kernel_gradient
from softattn.kernels.landmarks_to_tokens import Diagonal, TokenOutput, landmarks_to_tokens
from softattn.kernels.newton import newton
from softattn.kernels.quotient_gradient import QuotientGradient, quotient_gradient
from softattn.kernels.token_gradient import KeyTerms, QueryTerms, TokenGradient, token_gradient
from softattn.kernels.tokens_to_landmarks import tokens_to_landmarks

__all__ = [
    "Diagonal",
    "KeyTerms",
    "QueryTerms",
    "QuotientGradient",
    "TokenGradient",
    "TokenOutput",
    "cluster_sums",
    "gaussian_kernel",
    "gaussian_kernel_gradient",
    "landmarks_to_tokens",
    "nearest_landmarks",
    "newton",
    "quotient_gradient",
    "token_gradient",
    "tokens_to_landmarks",
]
