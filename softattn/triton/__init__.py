"""The Triton kernels as PyTorch operators: schemas, shapes, gradients.

Every operator is known to ``torch.compile`` and ``torch.export`` by its schema and its shapes. What
they compute stands in ``softattn.kernels``, which is imported at the first call. Gradients are
operators of their own, and those have none: a second derivative needs ``impl="eager"``.
"""

from softattn.triton.gaussian_attention import gaussian_attention
from softattn.triton.gaussian_kernel import gaussian_kernel
from softattn.triton.landmark_attention import landmark_attention
from softattn.triton.newton import newton

__all__ = ["gaussian_attention", "gaussian_kernel", "landmark_attention", "newton"]
