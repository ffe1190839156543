"""softmax_free_attention_varlen: each output is that of the sequence alone."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support.budget import assert_within_budget
from support.inverses import by_newton
from support.packed import gradients, lengths_of_batches, offsets
from support.strategies import NORMALIZATIONS, normal, seeds

import softattn
from softattn import AvgPoolLandmarks, ConvLandmarks, softmax_free_attention_varlen

ROUNDING = dict(rtol=1e-10, atol=1e-10)


@given(
    lengths=lengths_of_batches,
    key_lengths=st.none() | st.lists(st.integers(0, 9), min_size=3, max_size=3),
    normalization=st.sampled_from(NORMALIZATIONS),
    near_field=st.integers(1, 4),
    sampler=st.sampled_from(["average", "convolution"]),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    seed=seeds,
)
@example([], None, "token", 2, "average", torch.int64, 0)
@example([0], None, "token", 2, "average", torch.int32, 0)
@example([0, 0], [0, 0, 0], "landmark", 1, "average", torch.int64, 0)
@example([7, 7, 7], None, "landmark", 1, "convolution", torch.int32, 0)
def test_output_is_that_of_each_sequence_alone(
    lengths, key_lengths, normalization, near_field, sampler, dtype, seed
):
    crossed = key_lengths is not None
    key_lengths = key_lengths[: len(lengths)] if crossed else lengths
    query = normal(sum(lengths), 2, 3, seed=seed).requires_grad_()
    key = normal(sum(key_lengths), 2, 3, seed=seed + 1).requires_grad_() if crossed else query
    value = normal(sum(key_lengths), 2, 5, seed=seed + 2).requires_grad_()
    if crossed or normalization != "token":
        near_field = 1
    options = {"normalization": normalization, "scale": 0.7, "near_field": near_field}
    sample = AvgPoolLandmarks(4) if sampler == "average" else ConvLandmarks(3, (3,)).double()
    landmarks, padding = sample.forward_varlen(key, offsets(key_lengths, dtype))
    output = softmax_free_attention_varlen(
        query,
        key if crossed else None,
        value,
        landmarks,
        offsets(lengths, dtype),
        offsets(key_lengths, dtype) if crossed else None,
        landmark_padding_mask=padding,
        **options,
    )

    def alone(query, key, value):
        query, key, value = (t.transpose(0, 1)[None] for t in (query, key, value))
        return softattn.softmax_free_attention(
            query, key if crossed else None, value, sample(key), **options
        )[0].transpose(0, 1)

    sequences = (query.split(lengths), key.split(key_lengths), value.split(key_lengths))
    expected = torch.cat([value[:0], *map(alone, *sequences)])
    assert landmarks.shape[:2] == (len(lengths), 2)
    torch.testing.assert_close(output, expected, **ROUNDING)
    inputs = (query, key, value) if crossed else (query, value)
    for actual, wanted in zip(
        gradients([output], inputs), gradients([expected], inputs), strict=True
    ):
        torch.testing.assert_close(actual, wanted, **ROUNDING)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_triton_is_as_close_as_eager(normalization, device):
    query, value = torch.randn(2, 22, 1, 4, device=device)
    cu_seqlens = offsets([5, 0, 17])
    landmarks, padding = AvgPoolLandmarks(6).forward_varlen(query, cu_seqlens)

    def results(impl, dtype, pinv=None):
        inputs = [each.to(dtype).requires_grad_() for each in (query, value, landmarks)]
        output = softmax_free_attention_varlen(
            inputs[0],
            None,
            *inputs[1:],
            cu_seqlens,
            normalization=normalization,
            landmark_padding_mask=padding,
            pinv=pinv,
            impl=impl,
        )
        weights = normal(*output.shape, seed=3).to(output)
        return output, *torch.autograd.grad((output * weights).sum(), inputs)

    truths = results("eager", torch.float64)
    baselines = results("eager", torch.float32, by_newton)
    for actual, truth, baseline in zip(
        results("triton", torch.float32), truths, baselines, strict=True
    ):
        assert_within_budget(actual, truth, baseline=baseline)


OFFSETS = offsets([4, 5])
TOKENS = torch.randn(9, 2, 4)


LANDMARKS = torch.randn(2, 2, 3, 4)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"query": TOKENS[None]}, ValueError, r"query must be \(total_q, .*got \(1, 9, 2, 4\)"),
        ({"value": TOKENS[:8]}, ValueError, r"\(8, 2, 4\) and \(2, 2, 3, 4\)"),
        ({"landmarks": LANDMARKS[:, :1]}, ValueError, r"and \(2, 1, 3, 4\)"),
        ({"landmarks": LANDMARKS[:1]}, ValueError, "of one batch, got 2, 2 and 1 sequences"),
        ({"landmarks": LANDMARKS.double()}, TypeError, r"one dtype, .*landmarks torch\.float64"),
        ({"key": TOKENS.clone()}, ValueError, r"got key of its own and cu_seqlens_k=None"),
        ({"cu_seqlens_k": OFFSETS}, ValueError, "got no key of its own and"),
        ({"normalization": "rows"}, ValueError, "normalization must be one of"),
        (
            {"landmark_padding_mask": torch.zeros(2, 4, dtype=torch.bool)},
            ValueError,
            r"= \(2, 3\), got shape \(2, 4\)",
        ),
    ],
)
def test_bad_calls(changed, error, message):
    arguments = (
        dict(query=TOKENS, key=None, value=TOKENS, landmarks=LANDMARKS, cu_seqlens_q=OFFSETS)
        | changed
    )
    with pytest.raises(error, match=message):
        softmax_free_attention_varlen(**arguments)
