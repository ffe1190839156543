"""No n × m array is ever made, forward or backward, by any normalisation."""

from itertools import product

import pytest
import torch
from support.memory import LargestTensor
from support.strategies import NORMALIZATIONS

import softattn
from softattn.eager import tiles as streaming

N, M, D = 2**16, 64, 8


LINEAR = N * (D + 2)  # numerators, denominators and their absolute terms
ALLOWED = max(LINEAR, streaming._TILE_ELEMENTS)


def test_the_recorder_sees_a_block_that_is_written_out():
    with LargestTensor() as largest:
        softattn.gaussian_kernel(torch.randn(1, 1, N, D), torch.randn(1, 1, M, D))
    assert largest.elements == N * M > ALLOWED


@pytest.mark.parametrize(
    ("normalization", "crossed", "near_field"),
    [*product(NORMALIZATIONS, [False, True], [1]), ("token", False, 16)],
)
def test_softmax_free_attention(normalization, crossed, near_field):
    query = torch.randn(1, 1, N, D, requires_grad=True)
    key = torch.randn(1, 1, N, D, requires_grad=True) if crossed else None
    value = torch.randn(1, 1, N, D, requires_grad=True)
    landmarks = torch.randn(1, 1, M, D, requires_grad=True)
    with LargestTensor() as largest:
        output = softattn.softmax_free_attention(
            query, key, value, landmarks, normalization=normalization, near_field=near_field
        )
        inputs = [t for t in (query, key, value, landmarks) if t is not None]
        gradients = torch.autograd.grad(output.sum(), inputs, create_graph=True)
        sum(g.square().sum() for g in gradients).backward()
    assert query.grad is not None
    assert largest.elements <= ALLOWED


@pytest.mark.parametrize("normalize", [False, True])
def test_gaussian_attention(normalize):
    n = 4096
    tokens = torch.randn(1, 1, n, D, requires_grad=True)
    with LargestTensor() as largest:
        softattn.gaussian_attention(tokens, None, tokens, normalize=normalize).sum().backward()
    assert largest.elements <= streaming._TILE_ELEMENTS < n * n
