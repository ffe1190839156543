"""The attentions that ``benchmarks.recall`` compares, as layers on (batch, tokens, EMBED_DIM)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from softattn import (
    AvgPoolLandmarks,
    KMeansLandmarks,
    LandmarkSampler,
    SoftmaxFreeAttention,
    gaussian_attention,
)

EMBED_DIM, HEADS = 64, 2

# From X and V, (batch, heads, n, d), to the output of self-attention.
Operator = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Attention:
    """An attention to train.

    label: its name in tables and figures.
    make: from the number of landmarks, which some ignore, to a layer.
    package: what must be installed, by the name of its import.
    """

    label: str
    make: Callable[[int], nn.Module]
    package: str | None = None


class SharedProjection(nn.Module):
    """Multi-head self-attention with one projection for queries and keys, as our layer has it."""

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.operator = operator
        self.qk_proj, self.v_proj, self.out_proj = (
            nn.Linear(EMBED_DIM, EMBED_DIM) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n, EMBED_DIM) to the same shape."""
        queries, values = (
            rearrange(projection(x), "b n (h d) -> b h n d", h=HEADS)
            for projection in (self.qk_proj, self.v_proj)
        )
        output: Tensor = self.out_proj(
            rearrange(self.operator(queries, values), "b h n d -> b n (h d)")
        )
        return output


def _softmax(x: Tensor, values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, values)


def _exact(x: Tensor, values: Tensor) -> Tensor:
    return gaussian_attention(x, None, values, normalize=True)


def _linear(x: Tensor, values: Tensor) -> Tensor:
    """φ(x) (Σ φ(x)ᵀ v) / φ(x) Σ φ(x)ᵀ with φ = elu + 1 (Katharopoulos et al., 2020)."""
    features = F.elu(x) + 1
    return features @ (features.mT @ values) / (features @ features.sum(-2).unsqueeze(-1))


def _ours(sampler: Callable[[int], LandmarkSampler], **options: Any) -> Callable[[int], nn.Module]:
    return lambda m: SoftmaxFreeAttention(EMBED_DIM, HEADS, landmarks=sampler(m), **options)


def _nystrom_attention(m: int) -> nn.Module:
    from nystrom_attention import NystromAttention

    layer: nn.Module = NystromAttention(
        EMBED_DIM, dim_head=EMBED_DIM // HEADS, heads=HEADS, num_landmarks=m, residual=False
    )
    return layer


ATTENTIONS = {
    "softmax": Attention("softmax", lambda m: SharedProjection(_softmax)),
    "exact": Attention("exact Gaussian", lambda m: SharedProjection(_exact)),
    "token": Attention('"token"', _ours(AvgPoolLandmarks)),
    "token_kmeans": Attention('"token", k-means', _ours(KMeansLandmarks)),
    "near_16": Attention("near field of 16, k-means", _ours(KMeansLandmarks, near_field=16)),
    "near_64": Attention("near field of 64, k-means", _ours(KMeansLandmarks, near_field=64)),
    "none": Attention('"none"', _ours(AvgPoolLandmarks, normalization="none")),
    "landmark": Attention('"landmark"', _ours(AvgPoolLandmarks, normalization="landmark")),
    "softmax_landmarks": Attention('"softmax"', _ours(AvgPoolLandmarks, normalization="softmax")),
    "linear": Attention("linear, elu + 1", lambda m: SharedProjection(_linear)),
    "nystrom_attention": Attention("nystrom-attention", _nystrom_attention, "nystrom_attention"),
}
