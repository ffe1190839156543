"""What ``benchmarks.accuracy`` compares with what, and the errors it finds."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from softattn import reference, softmax_free_attention


@dataclass(frozen=True)
class Comparison:
    """An approximation, and the exact answer that it is measured against.

    unit_norm: tokens are first brought to one norm, √d times the sharpness.
    """

    title: str
    normalization: str
    truth: str
    unit_norm: bool = False
    best_scale: bool = False


COMPARISONS = {
    "none": Comparison('"none" to exact Gaussian', "none", "gaussian"),
    "landmark": Comparison(
        '"landmark", best scale, to exact Gaussian', "landmark", "gaussian", best_scale=True
    ),
    "token": Comparison('"token" to row-normalised Gaussian', "token", "normalised"),
    "softmax": Comparison(
        '"token" to softmax, tokens of one norm', "token", "softmax", unit_norm=True
    ),
}


@dataclass(frozen=True)
class Error:
    """Relative Frobenius errors of one approximation.

    plain: ‖O − T‖ / ‖T‖.
    scaled: the same with c O for the c that makes it least.
    """

    comparison: str
    sharpness: float
    sampler: str
    landmarks: int
    plain: float
    scaled: float

    @property
    def shown(self) -> float:
        """The one that tables and figures show for this comparison."""
        return self.scaled if COMPARISONS[self.comparison].best_scale else self.plain


def tokens_for(comparison: Comparison, tokens: Tensor, sharpness: float) -> Tensor:
    """The tokens that a comparison is made on: larger ones make the kernel sharper."""
    if comparison.unit_norm:
        tokens = math.sqrt(tokens.shape[-1]) * torch.nn.functional.normalize(tokens, dim=-1)
    return sharpness * tokens


def exact_answer(truth: str, tokens: Tensor, values: Tensor) -> Tensor:
    """The answer in O(n²): "gaussian", "normalised" or "softmax"."""
    if truth == "softmax":
        logits = tokens @ tokens.mT / math.sqrt(tokens.shape[-1])
        return logits.softmax(-1) @ values
    return reference.gaussian_attention(tokens, tokens, values, normalize=truth == "normalised")


def errors_of(approximation: Tensor, truth: Tensor) -> tuple[float, float]:
    """The relative error, plain and after the best scalar factor."""
    output = approximation.double()
    plain = torch.linalg.vector_norm(output - truth) / torch.linalg.vector_norm(truth)
    factor = (output * truth).sum() / output.square().sum()
    scaled = torch.linalg.vector_norm(factor * output - truth) / torch.linalg.vector_norm(truth)
    return float(plain), float(scaled)


def approximate(
    comparison: Comparison, tokens: Tensor, values: Tensor, landmarks: Tensor
) -> Tensor:
    """Softmax-free self-attention with the normalisation of the comparison."""
    return softmax_free_attention(
        tokens, None, values, landmarks, normalization=comparison.normalization
    )
