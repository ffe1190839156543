"""Sizes at which the kernels use the matrix units as they do in practice.

With few features most kernels take other instructions. The interpreter runs one combination on
few tokens; with ``--device cuda`` all run on about a thousand.
"""

from itertools import product

import pytest
import torch
from support.budget import assert_within_budget
from support.strategies import NORMALIZATIONS, normal

from softattn import gaussian_attention, softmax_free_attention
from softattn.backends.backend import EAGER, TRITON
from softattn.backends.selection import MOST_OF_NEAR_FIELDS

ALL = tuple(product((32, 64, 128), (49, 64, 100), (torch.bfloat16, torch.float16, torch.float32)))
INTERPRETED = ((64, 49, torch.bfloat16),)


def pytest_generate_tests(metafunc):
    """Parametrises by features, landmarks and dtype."""
    if "size" in metafunc.fixturenames:
        sizes = ALL if metafunc.config.getoption("--device") == "cuda" else INTERPRETED
        ids = [f"{d}-{m}-{str(dtype)[6:]}" for d, m, dtype in sizes]
        metafunc.parametrize("size", sizes, ids=ids)


def tensors_of(size, device, *, crossed):
    """Query, key or None, value, landmarks, and the gradient of the output."""
    d, m, dtype = size
    heads, n = (2, 1003) if device.type == "cuda" else (1, 80)
    query, key, value, grad = (normal(1, heads, n, d, seed=seed) for seed in range(4))
    # Distances for which the kernel is neither 0 nor 1.
    query, key = query / d**0.25, key / d**0.25
    landmarks = query[:, :, :: n // m][:, :, :m]
    tensors = (query, key if crossed else None, value, landmarks, grad)
    return [t if t is None else t.to(device, dtype) for t in tensors]


def assert_all_within_budget(attend, tensors):
    """Asserts it of the output and of all gradients of ``attend(impl, *arguments)``."""

    def output_and_gradients(impl, tensors):
        *arguments, grad = tensors
        arguments = [t if t is None else t.detach().requires_grad_() for t in arguments]
        output = attend(impl, *arguments)
        present = [t for t in arguments if t is not None]
        return output.detach(), *torch.autograd.grad(output, present, grad)

    actual = output_and_gradients("triton", tensors)
    plain = output_and_gradients("eager", tensors)
    truth = output_and_gradients("eager", [t if t is None else t.double() for t in tensors])
    for a, t, p in zip(actual, truth, plain, strict=True):
        # Up to 1/ε is added and taken off again on the way.
        magnitude = 100 * t.abs().amax().cpu()
        assert_within_budget(a.cpu(), t.cpu(), baseline=p.cpu(), magnitude=magnitude)


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_attention_through_landmarks(device, size, normalization, crossed):
    def attend(impl, *arguments):
        return softmax_free_attention(*arguments, normalization=normalization, impl=impl)

    assert_all_within_budget(attend, tensors_of(size, device, crossed=crossed))


@pytest.mark.parametrize("normalize", [False, True])
def test_exact_attention(device, size, normalize):
    def attend(impl, *arguments):
        return gaussian_attention(*arguments, normalize=normalize, impl=impl)

    query, key, value, _, grad = tensors_of(size, device, crossed=True)
    assert_all_within_budget(attend, [query, key, value, grad])


@pytest.mark.parametrize("near_field", [3, 16, 64])
def test_near_field(device, size, near_field):
    """In a random order: in that of their content equal distances to landmarks decide."""
    if device.type == "cpu":
        # The interpreter truncates what it stores as bfloat16, and dM follows from the output.
        size = (*size[:2], torch.float16)
    d, m, dtype = size
    widths = MOST_OF_NEAR_FIELDS[dtype]
    d = min(d, max(widths))
    size = (d, min(m, next(most for width, most in widths.items() if d <= width)), dtype)
    query, _, value, landmarks, grad = tensors_of(size, device, crossed=False)
    scale = query.shape[-1] ** -0.5
    gram = EAGER.gram(landmarks.double(), landmarks.double(), scale)
    middle = torch.linalg.inv(gram + 0.01 * torch.eye(gram.shape[-1], device=device)).float()

    order = normal(*query.shape[:3], seed=4).argsort().to(device)

    def attend(impl, query, value, landmarks, middle):
        return (TRITON if impl == "triton" else EAGER).landmark_attention(
            query,
            None,
            value,
            landmarks,
            middle,
            quotient=True,
            near_field=near_field,
            order=order,
            key_weights=None,
            scale=scale,
            key_padding_mask=None,
            group=None,
        )

    assert_all_within_budget(attend, [query, value, landmarks, middle, grad])
