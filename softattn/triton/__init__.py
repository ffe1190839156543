"""The Triton kernels as PyTorch operators: schemas, shapes, gradients.

``torch.compile`` and ``torch.export`` know every operator by its schema and its shapes. The
kernels are in ``softattn.kernels``, which is imported at the first call. Gradients are operators
too, and have no gradients: a second derivative needs ``impl="eager"``.
"""

from softattn.triton.clusters import cluster_sums, labels_and_places, nearest_landmarks
from softattn.triton.gaussian_attention import gaussian_attention
from softattn.triton.gaussian_kernel import gaussian_kernel
from softattn.triton.key_weights import key_weights
from softattn.triton.landmark_attention import landmark_attention
from softattn.triton.middle_factor import middle_factor
from softattn.triton.near_field import near_field_attention
from softattn.triton.newton import newton

__all__ = [
    "cluster_sums",
    "gaussian_attention",
    "gaussian_kernel",
    "key_weights",
    "labels_and_places",
    "landmark_attention",
    "middle_factor",
    "near_field_attention",
    "nearest_landmarks",
    "newton",
]
