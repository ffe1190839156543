"""The m × m factor in one launch: interpreted, or on a GPU with ``--device cuda``."""

import dataclasses

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.budget import assert_within_budget
from support.strategies import normal, padding_masks, seeds, spreads

from softattn import NewtonPinv, softmax_free_attention
from softattn.backends import nystrom
from softattn.backends.backend import EAGER, TRITON
from softattn.pinv import ridge_of
from softattn.triton.middle_factor import MOST_LANDMARKS

pytestmark = pytest.mark.usefixtures("kernel_tiles", "poisoned_memory")

few = settings(max_examples=max(settings.default.max_examples // 6, 1))
SCALE, RIDGE = 0.5, 0.01


def middle_factor(backend, landmarks, mask=None, *, normalization="none", impl="auto"):
    """The landmarks and the factor as ``backend`` gives them to a call."""
    pinv = NewtonPinv("minimax", ridge=RIDGE, impl=impl)
    return nystrom.middle_factor(
        backend,
        landmarks,
        normalization=normalization,
        pinv=pinv,
        ridge=ridge_of(pinv, backend.name),
        scale=SCALE,
        landmark_padding_mask=mask,
    )


def factor_and_gradient(backend, landmarks, mask, normalization):
    """Landmarks, factor, and the gradient of a random projection of both."""
    landmarks = landmarks.detach().requires_grad_()
    outputs = middle_factor(backend, landmarks, mask, normalization=normalization)
    weights = [normal(*t.shape, seed=seed).to(t) for seed, t in enumerate(outputs, start=5)]
    total = sum((t * w).sum() for t, w in zip(outputs, weights, strict=True))
    return *outputs, torch.autograd.grad(total, landmarks)[0]


@few
@given(
    m=st.integers(1, 36),
    d=st.integers(1, 20),
    seed=seeds,
    spread=spreads,
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    normalization=st.sampled_from(["none", "landmark"]),
    data=st.data(),
)
def test_factor_and_gradient_are_within_budget(
    device, m, d, seed, spread, dtype, normalization, data
):
    landmarks = normal(2, 2, m, d, seed=seed, spread=spread).to(dtype)
    mask = data.draw(st.none() | padding_masks(2, m))
    on_device = None if mask is None else mask.to(device)
    actual = factor_and_gradient(TRITON, landmarks.to(device), on_device, normalization)
    plain = factor_and_gradient(EAGER, landmarks, mask, normalization)
    truth = factor_and_gradient(EAGER, landmarks.double(), mask, normalization)
    for a, t, p in zip(actual, truth, plain, strict=True):
        # Up to 1/ε is added and taken off again on the way.
        magnitude = 100 * t.abs().amax() * (1 + spread**2)
        assert_within_budget(a.detach().cpu(), t.detach(), baseline=p.detach(), magnitude=magnitude)


@pytest.mark.parametrize("m", [47, MOST_LANDMARKS])
@pytest.mark.parametrize("normalization", ["none", "landmark"])
def test_many_landmarks(device, m, normalization):
    landmarks = normal(1, 1, m, 6, seed=0)
    actual = factor_and_gradient(TRITON, landmarks.float().to(device), None, normalization)
    plain = factor_and_gradient(EAGER, landmarks.float(), None, normalization)
    truth = factor_and_gradient(EAGER, landmarks, None, normalization)
    for a, t, p in zip(actual, truth, plain, strict=True):
        assert_within_budget(
            a.detach().cpu(), t.detach(), baseline=p.detach(), magnitude=100 * t.abs().amax()
        )


@pytest.mark.parametrize("ridge", [1e-4, 1.0, 1e3, 1e9])
def test_any_ridge(device, ridge):
    landmarks = normal(1, 2, 20, 3, seed=0)
    gram = EAGER.gram(landmarks, landmarks, SCALE)
    truth = torch.linalg.inv(gram + ridge * torch.eye(20, dtype=gram.dtype))
    _, actual = TRITON.regularized_middle_factor(
        landmarks.float().to(device),
        ridge=ridge,
        normalized=False,
        scale=SCALE,
        landmark_padding_mask=None,
    )
    plain = torch.linalg.inv(gram.float() + ridge * torch.eye(20))
    magnitude = truth.abs().amax() * (20 + ridge) / ridge
    assert_within_budget(actual.cpu(), truth, baseline=plain, magnitude=magnitude)


@few
@given(seed=seeds, m=st.integers(2, 20))
@example(seed=0, m=20)
def test_padded_landmarks_and_other_samples_change_no_bit(device, seed, m):
    landmarks = normal(3, 2, m, 4, seed=seed).to(device, torch.float32)
    mask = torch.zeros(3, m, dtype=torch.bool, device=device)
    mask[0, m // 2] = True
    other = landmarks.clone()
    other[0, :, m // 2] = float("nan")
    other[1] = normal(2, m, 4, seed=seed + 1).to(other)
    other[2, 0, 0] = float("nan")
    (moved, factor), (others_moved, others) = (
        middle_factor(TRITON, x, mask, normalization="landmark") for x in (landmarks, other)
    )
    assert torch.equal(factor[0], others[0]) and torch.equal(moved[0], others_moved[0])
    assert (factor[0, :, m // 2] == 0).all() and (factor[0, :, :, m // 2] == 0).all()
    assert factor.isfinite().all() and others[2, 0].isnan().any() and others[2, 1].isfinite().all()


def test_strides_do_not_matter(device):
    landmarks = normal(2, 3, 20, 5, seed=0).to(device, torch.float32)
    expected = factor_and_gradient(TRITON, landmarks, None, "landmark")
    between_heads = landmarks.transpose(1, 2).contiguous().transpose(1, 2)
    features_apart = landmarks.mT.contiguous().mT
    for scattered in (between_heads, features_apart):
        actual = factor_and_gradient(TRITON, scattered, None, "landmark")
        for a, b in zip(actual, expected, strict=True):
            assert torch.equal(a, b)


class TestRegularization:
    """Which inverses the kernel stands for."""

    def test_an_eager_inverse_is_called(self, device):
        def refuse(*args, **options):
            raise AssertionError("the kernel was asked")

        backend = dataclasses.replace(TRITON, regularized_middle_factor=refuse)
        landmarks = normal(1, 2, 5, 3, seed=0).to(device, torch.float32)

        def factor(backend, impl):
            return middle_factor(backend, landmarks, impl=impl)[1]

        torch.testing.assert_close(
            factor(backend, "eager"), factor(TRITON, "auto"), rtol=1e-3, atol=1e-4
        )
        with pytest.raises(AssertionError, match="was asked"):
            factor(backend, "auto")

    def test_a_callable_inverse_is_called(self, device):
        tokens = normal(1, 1, 8, 3, seed=0).to(device, torch.float32)
        called = []

        def pinv(gram):
            called.append(gram)
            return torch.linalg.inv(gram + 0.01 * torch.eye(4, device=gram.device))

        options = {"normalization": "none", "impl": "triton"}
        own = softmax_free_attention(tokens, None, tokens, tokens[:, :, :4], pinv=pinv, **options)
        default = softmax_free_attention(tokens, None, tokens, tokens[:, :, :4], **options)
        assert len(called) == 1
        torch.testing.assert_close(own, default, rtol=1e-3, atol=1e-4)
