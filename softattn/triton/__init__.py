"""The Triton kernels as PyTorch operators: schemas, shapes, gradients.

``torch.compile`` and ``torch.export`` know every operator by its schema and its shapes. The
kernels are in ``softattn.kernels``, which is imported at the first call. Gradients are operators
too, and have no gradients: a second derivative needs ``impl="eager"``.
"""

from softattn.triton.clusters import cluster_sums, nearest_landmarks
from softattn.triton.gaussian_attention import gaussian_attention
from softattn.triton.gaussian_kernel import gaussian_kernel
from softattn.triton.landmark_attention import landmark_attention
from softattn.triton.newton import newton

__all__ = [
    "cluster_sums",
    "gaussian_attention",
    "gaussian_kernel",
    "landmark_attention",
    "nearest_landmarks",
    "newton",
]
