"""Packed sequences of different lengths: each output is that of the sequence alone."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support.memory import LargestTensor
from support.packed import gradients, lengths_of_batches, offsets
from support.strategies import NORMALIZATIONS, normal, seeds
from torch.nested import nested_tensor_from_jagged

from softattn import AvgPoolLandmarks, ConvLandmarks, SoftmaxFreeAttention

ROUNDING = dict(rtol=1e-10, atol=1e-10)


def layer(sampler="average", **options) -> SoftmaxFreeAttention:
    torch.manual_seed(1)
    landmarks = AvgPoolLandmarks(4) if sampler == "average" else ConvLandmarks(3, (3,))
    return SoftmaxFreeAttention(6, 2, landmarks=landmarks, **options).double()


@given(
    lengths=lengths_of_batches,
    context_lengths=st.none() | st.lists(st.integers(0, 9), min_size=3, max_size=3),
    prefix=st.integers(0, 2),
    normalization=st.sampled_from(NORMALIZATIONS),
    sampler=st.sampled_from(["average", "convolution"]),
    seed=seeds,
)
@example([], None, 1, "token", "average", 0)
@example([0, 3, 1], None, 0, "landmark", "average", 0)
def test_output_is_that_of_each_sequence_alone(
    lengths, context_lengths, prefix, normalization, sampler, seed
):
    crossed = context_lengths is not None
    attention = layer(sampler, normalization=normalization, value_conv=0 if crossed else (3,))
    if crossed:
        context_lengths = [prefix + length for length in context_lengths[: len(lengths)]]
    else:
        lengths = [prefix + length for length in lengths]
    x = normal(sum(lengths), 6, seed=seed).requires_grad_()
    leaves = [x, *attention.parameters()]
    sequences, contexts = x.split(lengths), [None] * len(lengths)
    packed, jagged = {"cu_seqlens": offsets(lengths)}, {}
    if crossed:
        context = normal(sum(context_lengths), 6, seed=seed + 1).requires_grad_()
        leaves.append(context)
        contexts = [each[None] for each in context.split(context_lengths)]
        packed |= {"context": context, "context_cu_seqlens": offsets(context_lengths)}
        jagged["context"] = nested_tensor_from_jagged(context, offsets(context_lengths))
    alone = [
        attention(each[None], other, num_prefix_tokens=prefix)[0]
        for each, other in zip(sequences, contexts, strict=True)
    ]
    expected = torch.cat([x[:0], *alone])
    nested = attention(
        nested_tensor_from_jagged(x, offsets(lengths)), num_prefix_tokens=prefix, **jagged
    )
    assert nested.layout == torch.jagged and torch.equal(nested.offsets(), offsets(lengths))
    output = attention(x, num_prefix_tokens=prefix, **packed)
    torch.testing.assert_close(output, expected, **ROUNDING)
    torch.testing.assert_close(nested.values(), output, rtol=0, atol=0)
    wanted = gradients([expected], leaves)
    for actual in (gradients([output], leaves), gradients([nested.values()], leaves)):
        for one, other in zip(actual, wanted, strict=True):
            torch.testing.assert_close(one, other, **ROUNDING)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_neighbours_never_affect_a_sequence(normalization):
    attention = layer(normalization=normalization, value_conv=(3,)).float()
    lengths = [5, 0, 12, 1, 30]
    x = torch.randn(sum(lengths), 6)
    changed = x.clone()
    changed[:5], changed[18:] = float("nan"), 1e4

    def third(tokens):
        tokens = tokens.clone().requires_grad_()
        output = attention(tokens, cu_seqlens=offsets(lengths))
        (gradient,) = torch.autograd.grad(output[5:17].square().sum(), tokens)
        return output[5:17], gradient[5:17]

    for before, after, again in zip(third(x), third(changed), third(x), strict=True):
        assert torch.equal(before, after)
        assert torch.equal(before, again)


def test_output_of_a_jagged_tensor_adds_to_it():
    x = nested_tensor_from_jagged(normal(9, 6, seed=0), offsets([4, 0, 5]))
    attention = layer(normalization="token")
    total = x + attention(x)
    torch.testing.assert_close(total.values(), x.values() + attention(x).values())


def test_gradient_of_a_jagged_tensor_is_jagged():
    x = nested_tensor_from_jagged(normal(9, 6, seed=0), offsets([4, 0, 5])).requires_grad_()
    layer()(x).values().sum().backward()
    assert x.grad.layout == torch.jagged
    packed = x.values().detach().requires_grad_()
    layer()(packed, cu_seqlens=offsets([4, 0, 5])).sum().backward()
    torch.testing.assert_close(x.grad.values(), packed.grad, rtol=0, atol=0)


def test_jagged_tensor_with_holes():
    padded = normal(3, 5, 6, seed=0)
    start, length = torch.tensor([0, 1, 2]), torch.tensor([2, 1, 3])
    x = torch.nested.narrow(padded, 1, start, length, layout=torch.jagged)
    attention = layer(normalization="token")
    sequences = [padded[0, :2], padded[1, 1:2], padded[2, 2:]]
    expected = torch.cat([attention(each[None])[0] for each in sequences])
    torch.testing.assert_close(attention(x).values(), expected, **ROUNDING)


def test_context_that_is_x_is_self_attention():
    x, cu_seqlens = normal(9, 6, seed=0), offsets([4, 5])
    attention = layer(normalization="token")
    expected = attention(x, cu_seqlens=cu_seqlens)
    both = attention(x, x, cu_seqlens=cu_seqlens, context_cu_seqlens=cu_seqlens)
    torch.testing.assert_close(both, expected, rtol=0, atol=0)
    jagged = nested_tensor_from_jagged(x, cu_seqlens)
    torch.testing.assert_close(attention(jagged, jagged).values(), expected, rtol=0, atol=0)


def test_differentiable_twice():
    attention = layer(normalization="token")
    lengths = offsets([3, 0, 6])
    x = normal(9, 6, seed=0).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda tokens: attention(tokens, cu_seqlens=lengths), x, fast_mode=True
    )


def test_autocast_rounds_inputs_and_outputs_alone():
    attention = layer(normalization="token").float()
    x, lengths = torch.randn(20, 6, requires_grad=True), offsets([13, 7])
    exact = attention(x, cu_seqlens=lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = attention(x, cu_seqlens=lengths)
    rounded.float().sum().backward()
    assert rounded.dtype == torch.bfloat16 and x.grad.isfinite().all()
    error = (rounded.float() - exact).abs().max() / exact.abs().max()
    assert error < 40 * torch.finfo(torch.bfloat16).eps


# Dynamo looks at every tensor's gradient when it resumes after a break.
@pytest.mark.needs_newer_torch
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
def test_compiles_but_not_whole():
    torch.compiler.reset()
    attention = layer(normalization="token")
    x, cu_seqlens = normal(9, 6, seed=0), offsets([4, 0, 5])
    compiled = torch.compile(attention, backend="eager")
    expected = attention(x, cu_seqlens=cu_seqlens)
    torch.testing.assert_close(compiled(x, cu_seqlens=cu_seqlens), expected, **ROUNDING)
    jagged = compiled(nested_tensor_from_jagged(x, cu_seqlens))
    torch.testing.assert_close(jagged.values(), expected, **ROUNDING)


def test_memory_is_that_of_the_tokens():
    """Short sequences beside a long one do not make any array larger, as padding would."""
    attention = layer(normalization="token").float()

    def largest_array(lengths):
        x = torch.randn(sum(lengths), 6, requires_grad=True)
        with LargestTensor() as largest:
            attention(x, cu_seqlens=offsets(lengths)).sum().backward()
        return largest.elements

    assert largest_array([4096] + [8] * 63) == largest_array([4096]) < 64 * 4096


X = torch.randn(9, 6)
OFFSETS = offsets([4, 5])
JAGGED = nested_tensor_from_jagged(X, OFFSETS)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X,), {"cu_seqlens": [0, 9]}, TypeError, "cu_seqlens must be an int32 or .* got list"),
        (
            (X,),
            {"cu_seqlens": OFFSETS.float()},
            TypeError,
            r"int32 or int64 tensor, got torch\.float32",
        ),
        ((X,), {"cu_seqlens": OFFSETS[None]}, ValueError, r"\(batch \+ 1,\), got shape \(1, 3\)"),
        ((X,), {"cu_seqlens": OFFSETS[:0]}, ValueError, r"\(batch \+ 1,\), got shape \(0,\)"),
        ((X,), {"cu_seqlens": OFFSETS.to("meta")}, ValueError, "on the CPU or on cpu .* got meta"),
        ((X,), {"cu_seqlens": OFFSETS + 1}, ValueError, r"begin with 0, .* got \[1, 5, 10\]"),
        ((X,), {"cu_seqlens": OFFSETS[1:]}, ValueError, r"begin with 0, .* got \[4, 9\]"),
        ((X,), {"cu_seqlens": OFFSETS[:2]}, ValueError, r"number of tokens, 9; got \[0, 4\]"),
        (
            (X,),
            {"cu_seqlens": torch.tensor([0, 7, 4, 9])},
            ValueError,
            r"never decrease, .* got \[0, 7, 4, 9\]",
        ),
        (
            (X[None],),
            {"cu_seqlens": OFFSETS},
            ValueError,
            r"packed as \(total, 6\) .* \(1, 9, 6\) with ",
        ),
        ((X[:, :5],), {"cu_seqlens": OFFSETS}, ValueError, r"got shape \(9, 5\) with cu_seqlens"),
        ((JAGGED,), {"cu_seqlens": OFFSETS}, ValueError, "x is nested and has its own offsets"),
        ((JAGGED.transpose(1, 2),), {}, ValueError, r"nested as \(batch, jagged tokens, 6\)"),
        ((JAGGED.double(),), {}, TypeError, r"x is torch\.float64 and the layer torch\.float32"),
        (
            (JAGGED,),
            {"key_padding_mask": torch.zeros(2, 5, dtype=torch.bool)},
            ValueError,
            "no padding: leave out grid and key_padding_mask",
        ),
        ((JAGGED,), {"grid": (3, 3)}, ValueError, "one dimension each and .*padded to one"),
        ((JAGGED,), {"num_prefix_tokens": 5}, ValueError, r"got 5 and the lengths \(4, 5\)"),
        ((JAGGED,), {"num_prefix_tokens": -1}, ValueError, "num_prefix_tokens must lie .* got -1"),
        ((JAGGED,), {"is_causal": True}, ValueError, "causal attention is not offered"),
        ((JAGGED, X), {}, ValueError, r"context must be a jagged .* without context_cu_seqlens"),
        (
            (X[None], JAGGED),
            {},
            ValueError,
            r"x must be a jagged .* \(1, 9, 6\) without cu_seqlens",
        ),
        (
            (X,),
            {"context_cu_seqlens": OFFSETS},
            ValueError,
            "context_cu_seqlens says .* give context",
        ),
        (
            (JAGGED, nested_tensor_from_jagged(X, offsets([9]))),
            {},
            ValueError,
            "of one batch, got 2, 1 and 1 sequences",
        ),
    ],
)
def test_bad_calls(arguments, options, error, message):
    with pytest.raises(error, match=message):
        layer().float()(*arguments, **options)


def test_strided_nested_tensor_is_refused():
    with pytest.warns(UserWarning, match="nested tensors is in prototype stage"):
        x = torch.nested.nested_tensor([X, X[:3]], layout=torch.strided)
    with pytest.raises(ValueError, match=r"layout=torch\.jagged"):
        layer().float()(x)


def test_grids_of_two_dimensions_are_refused():
    with pytest.raises(ValueError, match="is for grids of 2 dimensions"):
        layer(value_conv=3).float()(JAGGED)
    attention = SoftmaxFreeAttention(6, 2, landmarks=AvgPoolLandmarks((2, 2)))
    with pytest.raises(ValueError, match="has 2 dimensions"):
        attention(JAGGED)
