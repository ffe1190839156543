"""Triton kernels of softmax-free attention and of Newton's iteration, for CUDA and ROCm.

Installed as ``softattn.kernels`` and imported at the first call that runs on them. Their functions
take checked tensors and launch; shapes, masks and gradients are the business of softattn itself.
"""

from softattn.kernels.gaussian_kernel import gaussian_kernel, gaussian_kernel_gradient
from softattn.kernels.landmarks_to_tokens import Diagonal, Heard, landmarks_to_tokens
from softattn.kernels.newton import newton
from softattn.kernels.quotient_gradient import QuotientGradient, quotient_gradient
from softattn.kernels.token_gradient import AsKeys, AsQueries, token_gradient
from softattn.kernels.tokens_to_landmarks import tokens_to_landmarks

__all__ = [
    "AsKeys",
    "AsQueries",
    "Diagonal",
    "Heard",
    "QuotientGradient",
    "gaussian_kernel",
    "gaussian_kernel_gradient",
    "landmarks_to_tokens",
    "newton",
    "quotient_gradient",
    "token_gradient",
    "tokens_to_landmarks",
]
