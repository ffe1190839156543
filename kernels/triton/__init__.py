"""Triton kernels of softmax-free attention and of Newton's iteration, for CUDA and ROCm.

Installed as ``softattn.kernels`` and imported at the first call that runs on them. The functions
take checked tensors and launch; softattn itself checks shapes and masks and defines gradients.
"""

from softattn.kernels.clusters import cluster_sums, labels_and_places, nearest_landmarks
from softattn.kernels.gaussian_kernel import gaussian_kernel, gaussian_kernel_gradient
from softattn.kernels.key_weights import KeyWeights, key_weights, key_weights_gradient
from softattn.kernels.landmark_weights import (
    LandmarkWeights,
    LandmarkWeightsGradient,
    fit_landmark_weights,
    landmark_weights,
    landmark_weights_gradient,
)
from softattn.kernels.landmarks_to_tokens import Diagonal, TokenOutput, landmarks_to_tokens
from softattn.kernels.launching import empty_rows
from softattn.kernels.median_token import median_token
from softattn.kernels.middle_factor import MiddleFactor, middle_factor, middle_factor_gradient
from softattn.kernels.near_field import NearFieldOutput, near_field_output
from softattn.kernels.near_field_gradient import NearFieldGradient, near_field_gradient
from softattn.kernels.newton import newton
from softattn.kernels.partial_sums import add_stretches, few_stretches
from softattn.kernels.pieces import Pieces, Weights, in_pieces, weights_in_pieces
from softattn.kernels.quotient_gradient import QuotientGradient, quotient_gradient
from softattn.kernels.token_gradient import KeyTerms, QueryTerms, TokenGradient, token_gradient
from softattn.kernels.tokens_to_landmarks import tokens_to_landmarks

__all__ = [
    "Diagonal",
    "KeyTerms",
    "KeyWeights",
    "LandmarkWeights",
    "LandmarkWeightsGradient",
    "MiddleFactor",
    "NearFieldGradient",
    "NearFieldOutput",
    "Pieces",
    "QueryTerms",
    "QuotientGradient",
    "TokenGradient",
    "TokenOutput",
    "Weights",
    "add_stretches",
    "cluster_sums",
    "empty_rows",
    "few_stretches",
    "fit_landmark_weights",
    "gaussian_kernel",
    "gaussian_kernel_gradient",
    "in_pieces",
    "key_weights",
    "key_weights_gradient",
    "labels_and_places",
    "landmark_weights",
    "landmark_weights_gradient",
    "landmarks_to_tokens",
    "median_token",
    "middle_factor",
    "middle_factor_gradient",
    "near_field_gradient",
    "near_field_output",
    "nearest_landmarks",
    "newton",
    "quotient_gradient",
    "token_gradient",
    "tokens_to_landmarks",
    "weights_in_pieces",
]
