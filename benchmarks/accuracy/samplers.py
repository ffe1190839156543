"""The ways to choose landmarks that ``benchmarks.accuracy`` compares."""

from collections.abc import Callable

import torch
from torch import Tensor

from softattn import AvgPoolLandmarks, KMeansLandmarks

# From tokens (1, 1, side², d), the side, m and a seed to landmarks (1, 1, m, d).
Sampler = Callable[[Tensor, int, int, int], Tensor]


def _average_pooling(tokens: Tensor, side: int, m: int, seed: int) -> Tensor:
    landmarks: Tensor = AvgPoolLandmarks(m)(tokens, (side, side))
    return landmarks


def _two_steps_of_k_means(tokens: Tensor, side: int, m: int, seed: int) -> Tensor:
    landmarks: Tensor = KMeansLandmarks(m, steps=2)(tokens, (side, side))
    return landmarks


def _random_subset(tokens: Tensor, side: int, m: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return tokens[..., torch.randperm(tokens.shape[-2], generator=generator)[:m], :]


def _k_means(tokens: Tensor, side: int, m: int, seed: int) -> Tensor:
    from sklearn.cluster import MiniBatchKMeans

    clusters = MiniBatchKMeans(n_clusters=min(m, tokens.shape[2]), random_state=seed, n_init=3)
    clusters.fit(tokens[0, 0].numpy())
    return torch.from_numpy(clusters.cluster_centers_).to(tokens)[None, None]


SAMPLERS: dict[str, Sampler] = {
    "average pooling": _average_pooling,
    "two steps of k-means": _two_steps_of_k_means,
    "random subset": _random_subset,
    "k-means": _k_means,
}
