"""Sizes that only a GPU takes: collected with ``--device cuda`` alone."""

import pytest
import torch
from support.strategies import NORMALIZATIONS

from softattn import (
    AvgPoolLandmarks,
    SoftmaxFreeAttention,
    gaussian_attention,
    softmax_free_attention,
)
from softattn.backends.backend import EAGER, TRITON


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_tokens_beyond_2_31_elements(device, normalization):
    n, d = 2**25 + 100, 64
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, 1, n, d)
    tokens = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
    value = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
    landmarks = tokens[:, :, :: n // 15].clone()
    last = slice(n - 1000, n)
    results = []
    for impl in ("triton", "eager"):
        tokens.requires_grad_(True).grad = None
        output = softmax_free_attention(
            tokens, None, value, landmarks, normalization=normalization, impl=impl
        )
        output[:, :, last].float().square().sum().backward()
        results.append((output.detach()[:, :, last].float(), tokens.grad[:, :, last].float()))
        del output
    for triton, eager in zip(*results, strict=True):
        assert (triton - eager).abs().amax() <= 0.02 * eager.abs().amax()


def test_near_field_of_tokens_beyond_2_31_elements(device):
    """In a random order: every tile has rows from the whole of the memory."""
    n, d, m = 2**25 + 100, 64, 15
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, 1, n, d)
    tokens = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
    value = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
    order = torch.rand(shape[:-1], generator=generator, device=device).argsort()
    landmarks = tokens[:, :, :m].clone()
    middle = torch.eye(m, device=device).expand(1, 1, m, m)
    last = slice(n - 1000, n)
    results = []
    for backend in (TRITON, EAGER):
        tokens.requires_grad_(True).grad = None
        output = backend.landmark_attention(
            tokens,
            None,
            value,
            landmarks,
            middle,
            quotient=True,
            near_field=16,
            order=order,
            key_weights=None,
            scale=d**-0.5,
            key_padding_mask=None,
            group=None,
        )
        output[:, :, last].float().square().sum().backward()
        results.append((output.detach()[:, :, last].float(), tokens.grad[:, :, last].float()))
        del output
    for triton, eager in zip(*results, strict=True):
        assert (triton - eager).abs().amax() <= 0.02 * eager.abs().amax()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normalize", [False, True])
def test_exact_attention_over_many_keys(device, dtype, normalize):
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = (
        torch.randn(2, 3, n, 64, generator=generator, device=device, dtype=dtype)
        for n in (3001, 5003, 5003)
    )
    triton, eager = (
        gaussian_attention(query, key, value, normalize=normalize, impl=impl).float()
        for impl in ("triton", "eager")
    )
    tolerance = 16 * torch.finfo(dtype).eps
    assert (triton - eager).abs().amax() <= tolerance * eager.abs().amax()


def test_full_size_layer_is_the_same_at_every_run(device):
    generator = torch.Generator(device).manual_seed(0)
    tokens, value, grad = (
        torch.randn(4, 8, 20_000, 64, generator=generator, device=device, dtype=torch.bfloat16)
        for _ in range(3)
    )
    landmarks = tokens[:, :, ::400].clone()
    first = None
    for _ in range(200):
        inputs = [t.detach().requires_grad_() for t in (tokens, value, landmarks)]
        output = softmax_free_attention(
            inputs[0], None, inputs[1], inputs[2], normalization="token", impl="triton"
        )
        run = (output.detach(), *torch.autograd.grad(output, inputs, grad))
        first = first or run
        for before, again in zip(first, run, strict=True):
            assert torch.equal(before, again)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_layer_is_captured_in_a_graph(device, normalization):
    """Nothing on the way, forward and backward, waits for the device."""
    layer = SoftmaxFreeAttention(
        256, 4, landmarks=AvgPoolLandmarks(49), normalization=normalization, device=device
    ).to(torch.bfloat16)
    parameters = list(layer.parameters())

    def step():
        output = layer(x)
        gradients = torch.autograd.grad(output.float().square().sum(), parameters)
        return output.detach(), *gradients

    x = torch.randn(2, 1000, 256, device=device, dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(torch.randn_like(x))
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_flags_for_tf32_change_no_bit(device, normalization):
    tokens = torch.randn(2, 2, 1000, 64, device=device, requires_grad=True)
    landmarks = tokens.detach()[:, :, :: 1000 // 49][:, :, :49]
    results = []
    for allowed in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        try:
            output = softmax_free_attention(
                tokens, None, tokens, landmarks, normalization=normalization, impl="triton"
            )
            results.append((output, *torch.autograd.grad(output.square().sum(), tokens)))
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False
    for without, with_tf32 in zip(*results, strict=True):
        assert torch.equal(without, with_tf32)
