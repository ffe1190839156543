"""Landmarks by a strided convolution."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import normal, padding_masks, seeds

from softattn import ConvLandmarks


@pytest.mark.parametrize(
    ("stride", "grid", "count"),
    [(8, (56, 56), 49), ((2,), (9,), 5), ((2, 3), (5, 6), 6), ((2, 2, 2), (3, 4, 5), 12)],
)
def test_number_of_landmarks(stride, grid, count):
    n = torch.Size(grid).numel()
    landmarks = ConvLandmarks(4, stride)(torch.randn(2, 3, n, 4), grid)
    assert landmarks.shape == (2, 3, count, 4)


def test_remainder():
    tokens = torch.randn(1, 1, 35, 4)
    pad = ConvLandmarks(4, 3)
    crop, error = ConvLandmarks(4, 3, remainder="crop"), ConvLandmarks(4, 3, remainder="error")
    crop.load_state_dict(pad.state_dict())
    assert pad(tokens, (5, 7)).shape[2] == 6
    assert crop(tokens, (5, 7)).shape[2] == 2
    padded = torch.nn.functional.pad(tokens.view(1, 1, 5, 7, 4), (0, 0, 0, 2, 0, 1))
    torch.testing.assert_close(pad(tokens, (5, 7)), crop(padded.flatten(2, 3), (6, 9)))
    with pytest.raises(ValueError, match=r"stride=\(3, 3\) does not divide the grid \(5, 7\)"):
        error(tokens, (5, 7))


@given(data=st.data(), n=st.integers(1, 12), seed=seeds)
def test_padding_is_ignored(data, n, seed):
    tokens = normal(2, 1, n, 3, seed=seed)
    mask = data.draw(padding_masks(2, n))
    sampler = ConvLandmarks(3, (2,), dtype=torch.float64)
    nan = tokens.masked_fill(mask[:, None, :, None], float("nan"))
    landmarks = sampler(nan, (n,), mask)
    zero = tokens.masked_fill(mask[:, None, :, None], 0)
    torch.testing.assert_close(landmarks, sampler(zero, (n,)), rtol=0, atol=0)
    padding = sampler.landmark_padding_mask((n,), mask)
    for i in range(padding.shape[1]):
        torch.testing.assert_close(padding[:, i], mask[:, 2 * i : 2 * i + 2].all(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConvLandmarks(4, 0), "stride must be"),
        (lambda: ConvLandmarks(4, (1, 1, 1, 1)), "stride must be"),
        (lambda: ConvLandmarks(4, 2, remainder="wrap"), "remainder must be one of"),
        (lambda: ConvLandmarks(4, 2)(torch.randn(1, 1, 4, 4)), "grids of 2 dimensions"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_repr():
    assert "remainder='pad'" in repr(ConvLandmarks(4, 2))
