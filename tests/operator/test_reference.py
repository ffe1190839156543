"""The oracles against the definition, pair by pair."""

import math

import pytest
import torch
from support.strategies import NORMALIZATIONS, QUOTIENTS, normal

from softattn import reference

B, H, N_Q, N_K, D, D_V, M = 2, 2, 4, 5, 3, 2, 3


def k(x, y, s):
    return math.exp(-s * sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True)) / 2)


def inputs():
    shapes = {"q": (N_Q, D), "k": (N_K, D), "v": (N_K, D_V), "l": (M, D)}
    return [normal(B, H, *shape, seed=i) for i, shape in enumerate(shapes.values())]


def test_gaussian_kernel():
    query, key, _, _ = inputs()
    for scale in (None, 0.7):
        s = D**-0.5 if scale is None else scale
        block = reference.gaussian_kernel(query, key, scale)
        for b in range(B):
            for h in range(H):
                for i in range(N_Q):
                    for j in range(N_K):
                        expected = k(query[b, h, i], key[b, h, j], s)
                        assert block[b, h, i, j].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gaussian_attention(normalize, masked):
    query, key, value, _ = inputs()
    mask = torch.tensor([[False, True, False, False, True], [False] * 5]) if masked else None
    output = reference.gaussian_attention(
        query, key, value, normalize=normalize, key_padding_mask=mask
    )
    for b in range(B):
        for h in range(H):
            for i in range(N_Q):
                weights = [
                    0 if masked and mask[b, j] else k(query[b, h, i], key[b, h, j], D**-0.5)
                    for j in range(N_K)
                ]
                total = sum(weights) if normalize else 1
                for c in range(D_V):
                    products = (w * float(value[b, h, j, c]) for j, w in enumerate(weights))
                    expected = sum(products) / total
                    assert output[b, h, i, c].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("crossed", [False, True])
def test_softmax_free_attention(normalization, crossed):
    query, key, value, landmarks = inputs()
    if not crossed:
        query = key
    output = reference.softmax_free_attention(
        query, key if crossed else None, value, landmarks, normalization=normalization, ridge=0.05
    )
    s, n = D**-0.5, query.shape[2]
    for b in range(B):
        for h in range(H):
            points = landmarks[b, h]
            center = key[b, h].mean(0) if crossed else torch.zeros(D, dtype=torch.float64)
            logs = [s * float(((key[b, h, j] - center) ** 2).sum()) / 2 for j in range(N_K)]
            tempering = 8 / max(8, max(logs) - min(logs))
            key_weights = [math.exp(tempering * (log - max(logs))) for log in logs]
            if normalization != "softmax":
                center, key_weights = torch.zeros(D, dtype=torch.float64), [1.0] * N_K
            a = [[k(x, y, s) for y in points] for x in points]
            ridged = torch.tensor(a, dtype=torch.float64) + 0.05 * torch.eye(M, dtype=torch.float64)
            inverse = torch.linalg.inv(ridged).tolist()
            row = [sum(r) ** -0.5 if normalization == "landmark" else 1.0 for r in a]
            for i in range(n):
                weights = []
                for j in range(N_K):
                    entry = sum(
                        k(query[b, h, i] + center, points[p], s)
                        * row[p]
                        * inverse[p][r]
                        * row[r]
                        * k(key[b, h, j], points[r], s)
                        for p in range(M)
                        for r in range(M)
                    )
                    if normalization in QUOTIENTS and not crossed and i == j:
                        entry = 1.0
                    weights.append(entry * key_weights[j])
                total = sum(weights) if normalization in QUOTIENTS else 1.0
                for c in range(D_V):
                    products = (w * float(value[b, h, j, c]) for j, w in enumerate(weights))
                    expected = sum(products) / total
                    assert output[b, h, i, c].item() == pytest.approx(expected, rel=1e-8, abs=1e-10)
