"""The operators in PyTorch's own operations, on any device."""

from softattn.eager.clusters import cluster_sums, labels_and_places, nearest_landmarks
from softattn.eager.gaussian_attention import gaussian_attention
from softattn.eager.gram import gram
from softattn.eager.landmark_attention import landmark_attention
from softattn.eager.regularized_inverse import regularized_inverse

__all__ = [
    "cluster_sums",
    "gaussian_attention",
    "gram",
    "labels_and_places",
    "landmark_attention",
    "nearest_landmarks",
    "regularized_inverse",
]
