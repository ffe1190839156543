"""The Triton kernels as PyTorch operators: schemas, shapes, gradients.

Every operator is known to ``torch.compile`` and ``torch.export`` by its schema and its shapes. What
they compute stands in ``softattn.kernels``, which is imported at the first call. Gradients are
operators of their own, and those have none: a second derivative needs ``impl="eager"``.
"""

from softattn.operators.gaussian_attention import gaussian_attention
from softattn.operators.gaussian_kernel import gaussian_kernel
from softattn.operators.landmark_attention import landmark_attention
from softattn.operators.newton import newton

__all__ = ["gaussian_attention", "gaussian_kernel", "landmark_attention", "newton"]
