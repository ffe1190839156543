"""Landmarks by averages over the cells of a grid."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import normal, padding_masks, seeds
from torch.autograd import gradcheck

from softattn import AvgPoolLandmarks


def runs(length: int, count: int) -> list[range]:
    """A partition of range(length) into ``count`` runs, the longer ones first."""
    size, longer = divmod(length, count)
    starts = [i * size + min(i, longer) for i in range(count + 1)]
    return [range(a, b) for a, b in pairwise(starts)]


@given(
    grid=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    sizes=st.data(),
    masked=st.booleans(),
    seed=seeds,
)
def test_is_the_mean_of_each_cell(grid, sizes, masked, seed):
    bins = [sizes.draw(st.integers(1, size)) for size in grid]
    n = torch.Size(grid).numel()
    tokens = normal(2, 2, n, 3, seed=seed)
    sampler = AvgPoolLandmarks(bins)
    masked = masked and len(grid) > 1
    mask = sizes.draw(padding_masks(2, n)) if masked else None
    pooled = sampler(tokens, grid, mask)
    maps = tokens.unflatten(2, grid)
    kept = torch.ones(2, *grid, dtype=torch.bool) if mask is None else ~mask.unflatten(1, grid)
    cells = torch.cartesian_prod(*(torch.arange(b) for b in bins)).view(-1, len(grid))
    missing = []
    for index, cell in enumerate(cells.tolist()):
        where = torch.meshgrid(
            *(torch.tensor(list(runs(s, b)[c])) for s, b, c in zip(grid, bins, cell, strict=True)),
            indexing="ij",
        )
        weight = kept[:, *where].flatten(1).double()
        content = maps[:, :, *where].flatten(2, -2)
        total = torch.einsum("bhnd,bn->bhd", content, weight)
        expected = total / weight.sum(1).clamp(min=1)[:, None, None]
        torch.testing.assert_close(pooled[:, :, index], expected)
        missing.append(weight.sum(1) == 0)
    if masked:
        padding = sampler.landmark_padding_mask(grid, mask)
        torch.testing.assert_close(padding, torch.stack(missing, 1))


@given(data=st.data(), n=st.integers(1, 20), m=st.integers(1, 8), seed=seeds)
def test_landmarks_of_a_padded_sequence_are_those_of_the_sequence(data, n, m, seed):
    tokens = normal(3, 2, n, 2, seed=seed)
    mask = data.draw(padding_masks(3, n))
    sampler = AvgPoolLandmarks(m)
    filled = tokens.masked_fill(mask[:, None, :, None], float("nan"))
    pooled = sampler(filled.nan_to_num(7e3), (n,), mask)
    padding = sampler.landmark_padding_mask((n,), mask)
    for sample in range(3):
        alone = sampler(tokens[sample : sample + 1, :, ~mask[sample]])
        torch.testing.assert_close(pooled[sample, :, ~padding[sample]], alone[0])


@pytest.mark.parametrize(
    ("count", "grid", "bins"),
    [
        (49, (56, 56), (7, 7)),
        (49, (14, 14), (7, 7)),
        (49, (100, 50), (9, 5)),
        (49, (50, 100), (5, 9)),
        (49, (3, 3), (3, 3)),
        (49, (20,), (20,)),
        (49, (1000,), (49,)),
        (64, (8, 8, 8), (4, 4, 4)),
        ((4, 3), (20, 2), (4, 2)),
        (49, (0, 5), (0, 1)),
    ],
)
def test_number_of_landmarks(count, grid, bins):
    sampler = AvgPoolLandmarks(count)
    assert sampler.bins(grid) == bins
    n = torch.Size(grid).numel()
    landmarks = sampler(torch.randn(2, 1, n, 3), grid)
    assert landmarks.shape == (2, 1, torch.Size(bins).numel(), 3)


@given(count=st.integers(1, 100), grid=st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_never_more_landmarks_than_asked_for_nor_than_tokens(count, grid):
    bins = AvgPoolLandmarks(count).bins(grid)
    assert torch.Size(bins).numel() <= count
    assert all(1 <= b <= size for b, size in zip(bins, grid, strict=True))


def test_gradients():
    tokens = normal(2, 1, 7, 2, seed=0).requires_grad_()
    mask = torch.tensor([[False, True, False, False, False, True, True], [False] * 7])
    assert gradcheck(AvgPoolLandmarks(3), tokens)
    assert gradcheck(lambda t: AvgPoolLandmarks(3)(t, (7,), mask), tokens)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adds_in_float32(dtype):
    tokens = torch.full((1, 1, 5000, 1), 3.0, dtype=dtype)
    torch.testing.assert_close(AvgPoolLandmarks(1)(tokens).item(), 3.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AvgPoolLandmarks(0), "positive int"),
        (lambda: AvgPoolLandmarks((3, 0)), "positive int"),
        (lambda: AvgPoolLandmarks((3, 3))(torch.randn(1, 1, 4, 2)), "has 2 dimensions"),
        (lambda: AvgPoolLandmarks(4)(torch.randn(1, 4, 2)), r"\(batch, heads, tokens, d\)"),
        (lambda: AvgPoolLandmarks(4)(torch.randn(1, 1, 4, 2), (3, 2)), "holds 6 tokens, got 4"),
        (lambda: AvgPoolLandmarks(4)(torch.randn(1, 1, 4, 2), (1, 1, 2, 2)), "one, two or three"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_any_kind_of_int_is_a_count():
    assert AvgPoolLandmarks(np.int64(49)).bins((56, 56)) == (7, 7)


def test_repr():
    assert repr(AvgPoolLandmarks((7, 5))) == "AvgPoolLandmarks(num_landmarks=(7, 5))"
    assert AvgPoolLandmarks().num_landmarks == 49
