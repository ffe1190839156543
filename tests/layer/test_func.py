"""torch.func over the layer, and activation checkpointing."""

import pytest
import torch
from support.strategies import NORMALIZATIONS, normal
from torch.func import functional_call, grad, jacrev, vmap
from torch.utils.checkpoint import checkpoint

from softattn import AvgPoolLandmarks, KMeansLandmarks, NewtonPinv, SoftmaxFreeAttention


def layer(normalization="token", sampler=AvgPoolLandmarks):
    return SoftmaxFreeAttention(
        6, 2, landmarks=sampler(4), normalization=normalization, dtype=torch.float64
    )


def loss_of(attention):
    def loss(parameters, x):
        return functional_call(attention, parameters, (x,)).square().sum()

    return loss


def by_autograd(attention, x):
    loss = attention(x).square().sum()
    return dict(
        zip(
            (name for name, _ in attention.named_parameters()),
            torch.autograd.grad(loss, tuple(attention.parameters())),
            strict=True,
        )
    )


@pytest.mark.parametrize("sampler", [AvgPoolLandmarks, KMeansLandmarks])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradients_of_each_sample(normalization, sampler):
    attention = layer(normalization, sampler)
    parameters = {name: p.detach() for name, p in attention.named_parameters()}
    x = normal(3, 11, 6, seed=0)
    of_one = grad(lambda parameters, x: loss_of(attention)(parameters, x[None]))
    together = vmap(of_one, in_dims=(None, 0))(parameters, x)
    for i in range(3):
        alone = by_autograd(attention, x[i : i + 1])
        for name, gradient in alone.items():
            torch.testing.assert_close(together[name][i], gradient)


class Called(NewtonPinv):
    """An inverse that a layer calls."""


@pytest.mark.parametrize(
    "options",
    [
        *({"normalization": normalization} for normalization in NORMALIZATIONS),
        {"pinv": Called("minimax", ridge=0.01)},
        {"pinv": "soft"},
        {"near_field": 3},
        {"landmarks": KMeansLandmarks(4)},
    ],
    ids=str,
)
def test_gradients_from_outside_of_a_vmap(options):
    options = {"landmarks": AvgPoolLandmarks(4)} | options
    attention = SoftmaxFreeAttention(6, 2, **options, dtype=torch.float64)
    x = normal(3, 11, 6, seed=0).requires_grad_()
    inputs = (x, *attention.parameters())
    mapped = torch.vmap(lambda each: attention(each[None])[0])(x)
    for actual, expected in zip(
        torch.autograd.grad(mapped.square().sum(), inputs),
        torch.autograd.grad(attention(x).square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


def test_functional_call_takes_other_parameters():
    attention, other = layer(), layer()
    x = normal(2, 9, 6, seed=0)
    output = functional_call(attention, dict(other.named_parameters()), (x,))
    torch.testing.assert_close(output, other(x), rtol=0, atol=0)
    gradients = grad(loss_of(attention))(
        {name: p.detach() for name, p in other.named_parameters()}, x
    )
    for name, gradient in by_autograd(other, x).items():
        torch.testing.assert_close(gradients[name], gradient)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_jacrev(normalization):
    attention = layer(normalization)
    x = normal(1, 5, 6, seed=0)
    expected = torch.autograd.functional.jacobian(attention, x)
    torch.testing.assert_close(jacrev(attention)(x), expected)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_checkpointed_gradients_are_the_same(normalization, padded):
    attention = layer(normalization)
    x = normal(2, 11, 6, seed=0).requires_grad_()
    padding = torch.arange(11).expand(2, -1) >= 8
    options = {"key_padding_mask": padding} if padded else {}
    inputs = (x, *attention.parameters())
    plain = attention(x, **options)
    saved = checkpoint(attention, x, use_reentrant=False, **options)
    torch.testing.assert_close(saved, plain, rtol=0, atol=0)
    for actual, expected in zip(
        torch.autograd.grad(saved.square().sum(), inputs),
        torch.autograd.grad(plain.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


# What PyTorch does itself when forward mode is first used.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_mode_is_refused():
    attention = layer()
    x = normal(1, 5, 6, seed=0)
    with pytest.raises(RuntimeError, match="jvp"):
        torch.func.jvp(attention, (x,), (x,))
