"""Products keep the digits of float32 where the device computes in TF32, emulated here."""

import pytest
import torch
from support.strategies import NORMALIZATIONS, normal

import softattn
from softattn.common import products

N, M, D = 300, 16, 8


def tf32(x):
    """Rounds to the 10 stored bits that TF32 keeps."""
    return ((x.view(torch.int32) + 2**12) & -(2**13)).view(torch.float32)


def is_float32(x):
    return isinstance(x, torch.Tensor) and x.dtype == torch.float32


class Tf32Mode(torch.overrides.TorchFunctionMode):
    """Rounds the float32 factors of every matrix product, as a GPU with the flag on does."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        names = {"matmul", "__matmul__", "mm", "bmm", "baddbmm"}
        if getattr(function, "__name__", "") in names:
            args = tuple(
                tf32(a.contiguous())
                if isinstance(a, torch.Tensor) and a.dtype == torch.float32
                else a
                for a in args
            )
        return function(*args, **(kwargs or {}))


@pytest.fixture
def with_the_flag_on(monkeypatch):
    monkeypatch.setattr(products, "rounds_to_tf32", lambda device: True)
    with Tf32Mode():
        yield


def test_the_emulation_loses_digits(with_the_flag_on):
    a, b = (normal(M, M, seed=seed, dtype=torch.float32) for seed in (0, 1))
    exact = (a.double() @ b.double()).float()
    assert (a @ b - exact).abs().max() > 1e-4 * exact.abs().max()
    assert (products.matmul(a, b) - exact).abs().max() < 1e-6 * exact.abs().max()


def test_gradients_keep_them_too(with_the_flag_on):
    a, b, grad = (normal(2, M, M, seed=s, dtype=torch.float32) for s in range(3))
    a.requires_grad_()
    b.requires_grad_()
    gradients = torch.autograd.grad(products.matmul(a, b), (a, b), grad)
    exact = (grad.double() @ b.double().mT, a.double().mT @ grad.double())
    for actual, expected in zip(gradients, exact, strict=True):
        assert (actual - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("crossed", [False, True])
def test_attention(monkeypatch, normalization, crossed):
    query, key, value = (normal(1, 2, N, D, seed=seed, dtype=torch.float32) for seed in range(3))
    landmarks = query[:, :, :: N // M][:, :, :M].clone()
    arguments = [
        query.requires_grad_(),
        key.requires_grad_() if crossed else None,
        value,
        landmarks,
    ]

    def attend(*tensors):
        output = softattn.softmax_free_attention(*tensors, normalization=normalization)
        (gradient,) = torch.autograd.grad(output.square().sum(), tensors[0])
        return output.detach(), gradient

    plain = attend(*arguments)
    exact = attend(
        *(None if t is None else t.detach().double().requires_grad_() for t in arguments)
    )
    monkeypatch.setattr(products, "rounds_to_tf32", lambda device: True)
    with Tf32Mode():
        flagged = attend(*arguments)
    for actual, baseline, expected in zip(flagged, plain, exact, strict=True):
        error, allowed = ((x - expected).abs().max() for x in (actual, baseline))
        assert error <= 4 * allowed + 1e-6 * expected.abs().max()
