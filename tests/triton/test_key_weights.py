"""The weights of keys of ``normalization="softmax"``, against PyTorch's operations."""

from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.budget import assert_within_budget
from support.strategies import normal, padding_masks, seeds

from softattn.common.key_weights import weigh_keys
from softattn.triton import backend

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def weigh_keys_on_triton(keys, scale, mask):
    """w alone."""
    return backend.weigh_keys(keys, scale, mask)[1]


few = settings(max_examples=max(settings.default.max_examples // 10, 1))
SCALE = 0.5


def weights_and_gradient(weigh, keys, mask):
    """w, and the gradient of a random projection."""
    keys = keys.detach().requires_grad_()
    weights = weigh(keys, SCALE, mask)
    projection = (weights * normal(*weights.shape, seed=5).to(weights)).sum()
    return weights, torch.autograd.grad(projection, keys)[0]


# The range of log w is below 8, or above it.
@pytest.mark.parametrize("spread", [0.3, 4.0])
@pytest.mark.parametrize("ties", [False, True])
@few
@given(
    n=st.integers(2, 150),
    d=st.integers(5, 20),
    seed=seeds,
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    data=st.data(),
)
def test_weights_and_gradient_are_within_budget(device, n, d, seed, spread, ties, dtype, data):
    keys = normal(2, 2, n, d, seed=seed, spread=spread).to(dtype)
    if ties:
        norms = keys.double().square().sum(-1, keepdim=True)
        extremes = torch.cat([norms.argmax(2, keepdim=True), norms.argmin(2, keepdim=True)], 2)
        keys = torch.cat([keys, keys.gather(2, extremes.expand(2, 2, 2, d))], 2)
        n += 2
    mask = data.draw(st.none() | padding_masks(2, n))
    filled = keys if mask is None else keys.masked_fill(mask[:, None, :, None], float("nan"))
    on_device = None if mask is None else mask.to(device)
    actual = weights_and_gradient(weigh_keys_on_triton, filled.to(device), on_device)
    plain = weights_and_gradient(weigh_keys, filled, mask)
    truth = weights_and_gradient(weigh_keys, filled.double(), mask)
    for a, t, p in zip(actual, truth, plain, strict=True):
        magnitude = (1 + spread**2) * (1 + t.abs().amax())
        assert_within_budget(a.detach().cpu(), t.detach(), baseline=p.detach(), magnitude=magnitude)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("scattered", [False, True])
def test_gradient_of_the_keys_is_added(device, padded, scattered):
    keys = normal(2, 3, 70, 5, seed=0).float().to(device)
    if scattered:
        keys = keys.mT.contiguous().mT
    mask = (torch.arange(70) >= 60).expand(2, 70).to(device) if padded else None
    projections = [normal(2, 3, 70, d, seed=d).to(keys) for d in (5, 1)]
    if mask is not None:
        projections[0].masked_fill_(mask[:, None, :, None], 0)

    def gradient(of_keys, of_weights):
        alone = keys.detach().requires_grad_()
        outputs = backend.weigh_keys(alone, SCALE, mask)
        factors = zip(outputs, projections, (of_keys, of_weights), strict=True)
        return torch.autograd.grad(sum((o * p).sum() for o, p, used in factors if used), alone)[0]

    both = gradient(True, True)
    torch.testing.assert_close(both, gradient(True, False) + gradient(False, True))
    assert torch.equal(gradient(True, False), projections[0])


def test_no_keys_and_none_left(device):
    none = weigh_keys_on_triton(torch.empty(1, 2, 0, 3, device=device), SCALE, None)
    assert none.shape == (1, 2, 0, 1)
    keys = normal(1, 1, 5, 3, seed=0).float().to(device).requires_grad_()
    mask = torch.ones(1, 5, dtype=torch.bool, device=device)
    weights = weigh_keys_on_triton(keys, SCALE, mask)
    assert (weights == 0).all()
    (gradient,) = torch.autograd.grad(weights.sum(), keys)
    assert (gradient == 0).all()


def test_more_keys_than_one_program_of_each_part_takes(device, monkeypatch):
    kernel = import_module("softattn.kernels.key_weights")
    monkeypatch.setattr(kernel, "_MOST_PARTS", 4)
    keys = normal(1, 2, 700, 3, seed=0).float()
    actual = kernel.key_weights(keys.to(device), scale=SCALE, largest_range=8.0).weights
    torch.testing.assert_close(actual.cpu(), weigh_keys(keys, SCALE, None)[..., 0])
