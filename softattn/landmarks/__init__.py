"""Landmark samplers: m tokens that stand for all n."""

from softattn.landmarks.average import AvgPoolLandmarks
from softattn.landmarks.convolution import ConvLandmarks
from softattn.landmarks.kmeans import KMeansLandmarks
from softattn.landmarks.sampler import (
    LandmarkSampler,
    check_grid,
    check_sampler,
    pool_landmarks,
)

__all__ = [
    "AvgPoolLandmarks",
    "ConvLandmarks",
    "KMeansLandmarks",
    "LandmarkSampler",
    "check_grid",
    "check_sampler",
    "pool_landmarks",
]
