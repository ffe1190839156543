"""The attention matrix by its factors is what the operator multiplies values by."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import NORMALIZATIONS, normal, padding_masks, problems, seeds

from softattn import (
    AvgPoolLandmarks,
    ConvLandmarks,
    SoftmaxFreeAttention,
    attention_factors,
    reference,
    softmax_free_attention,
)

ROUNDING = dict(rtol=1e-9, atol=1e-9)


def whole_matrix(problem, **options):
    """The n_q × n_k matrix: what unit vectors as values come out as."""
    keys = problem.keys
    units = torch.eye(keys.shape[2], dtype=keys.dtype).expand(*keys.shape[:3], -1)
    return replace(problem, value=units).solve(softmax_free_attention, **options)


def factors_of(problem, **options):
    return attention_factors(
        problem.query,
        problem.key,
        problem.landmarks,
        normalization=problem.normalization,
        scale=problem.scale,
        near_field=problem.near_field,
        **options,
    )


@given(problem=problems(), data=st.data())
def test_rows_and_column_sums_are_those_of_the_matrix(problem, data):
    n_q, n_k = problem.query.shape[2], problem.keys.shape[2]
    mask = data.draw(st.none() | padding_masks(problem.keys.shape[0], n_k))
    matrix = whole_matrix(problem, key_padding_mask=mask)
    factors = factors_of(problem, key_padding_mask=mask)
    indices = data.draw(st.lists(st.integers(0, n_q - 1), max_size=4)) if n_q else []
    torch.testing.assert_close(
        factors.rows(torch.tensor(indices, dtype=torch.long)), matrix[:, :, indices], **ROUNDING
    )
    torch.testing.assert_close(factors.column_sums(), matrix.sum(2), **ROUNDING)


def test_negative_indices_count_from_the_end():
    tokens = normal(1, 2, 9, 3, seed=0)
    factors = attention_factors(tokens, None, tokens[:, :, :4], normalization="token")
    torch.testing.assert_close(factors.rows([-1]), factors.rows([8]))


@pytest.mark.parametrize("crossed", [False, True])
def test_rows_of_token_sum_to_one(crossed):
    query, key = normal(1, 2, 9, 3, seed=0), normal(1, 2, 7, 3, seed=1)
    factors = attention_factors(
        query, key if crossed else None, query[:, :, :4], normalization="token"
    )
    rows = factors.rows(range(9))
    torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows[..., 0]))


def test_index_out_of_range_is_refused():
    tokens = normal(1, 2, 9, 3, seed=0)
    factors = attention_factors(tokens, None, tokens[:, :, :4])
    for index in (9, -10):
        with pytest.raises(IndexError, match="from -9 to 8, got"):
            factors.rows([index])


@pytest.mark.parametrize("normalization", ["none", "landmark", "token"])
def test_autocast_leaves_the_factors_as_they_are(normalization):
    tokens = torch.randn(1, 2, 9, 3)
    factors = attention_factors(tokens, None, tokens[:, :, :4], normalization=normalization)
    rows, sums = factors.rows(range(9)), factors.column_sums()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(factors.rows(range(9)), rows, rtol=0, atol=0)
        torch.testing.assert_close(factors.column_sums(), sums, rtol=0, atol=0)


def dense_matrix(attention, x, context, places, key_places, grid, prefix):
    """One sample's matrix written out from the reference, its rows and columns by place."""

    def heads(tokens):
        return attention.qk_proj(tokens).unflatten(-1, (2, 3)).transpose(-3, -2)[None]

    query, key = heads(x[places]), None if context is None else heads(context[key_places])
    keys = query if key is None else key
    n_k = keys.shape[2]
    matrix = reference.softmax_free_attention(
        query,
        key,
        torch.eye(n_k, dtype=x.dtype).expand(1, 2, -1, -1),
        attention.landmarks(keys[:, :, prefix:], grid),
        normalization=attention.normalization,
    )[0]
    whole = x.new_zeros(2, len(x), len(x if context is None else context))
    whole[:, places[:, None], key_places] = matrix
    return whole


@given(
    data=st.data(),
    grid=st.sampled_from([(7,), (3, 4), (2, 3, 2)]),
    prefix=st.integers(0, 2),
    normalization=st.sampled_from(NORMALIZATIONS),
    crossed=st.booleans(),
    convolved=st.booleans(),
    seed=seeds,
)
def test_factors_of_a_layer_are_its_matrix_in_place(
    data, grid, prefix, normalization, crossed, convolved, seed
):
    stride = (2,) * len(grid)
    landmarks = ConvLandmarks(3, stride).double() if convolved else AvgPoolLandmarks(4)
    attention = SoftmaxFreeAttention(
        6, 2, landmarks=landmarks, normalization=normalization, dtype=torch.float64
    )
    n = prefix + torch.Size(grid).numel()
    attended = normal(2, n, 6, seed=seed)
    x, context = (normal(2, 5, 6, seed=seed + 1), attended) if crossed else (attended, None)
    mask = None
    if len(grid) == 1:  # where a padded sample is what it is without its padding
        mask = data.draw(st.none() | padding_masks(2, n))
    if mask is not None:
        mask[:, :prefix] = mask[:, -1] = False
    factors = attention.attention_factors(
        x, context, grid=grid, key_padding_mask=mask, num_prefix_tokens=prefix
    )
    kept = torch.ones(2, n, dtype=torch.bool) if mask is None else ~mask
    expected = []
    for i in range(2):
        key_places = kept[i].nonzero()[:, 0]
        places = torch.arange(5) if crossed else key_places
        size = grid if mask is None else (len(key_places) - prefix,)
        other = context[i] if crossed else None
        expected.append(dense_matrix(attention, x[i], other, places, key_places, size, prefix))
    expected = torch.stack(expected)
    torch.testing.assert_close(factors.rows(range(x.shape[1])), expected, **ROUNDING)
    torch.testing.assert_close(factors.column_sums(), expected.sum(2), **ROUNDING)
    # And the layer multiplies its values by it.
    values = attention.v_proj(attended).masked_fill(~kept[..., None], 0)
    attended = expected @ values.unflatten(-1, (2, 3)).transpose(1, 2)
    output = attention.out_proj(attended.transpose(1, 2).flatten(2))
    if mask is not None and not crossed:
        output = output.masked_fill(mask[..., None], 0)
    torch.testing.assert_close(
        attention(x, context, grid=grid, key_padding_mask=mask, num_prefix_tokens=prefix),
        output,
        **ROUNDING,
    )


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_padding_between_tokens_keeps_its_place(normalization, crossed):
    attention = SoftmaxFreeAttention(6, 2, normalization=normalization, dtype=torch.float64)
    attended = normal(1, 9, 6, seed=0)
    mask = torch.tensor([[False, True, False, True, True, False, False, False, True]])
    kept = (~mask[0]).nonzero()[:, 0]
    x, context = (normal(1, 4, 6, seed=1), attended) if crossed else (attended, None)
    factors = attention.attention_factors(x, context, key_padding_mask=mask, num_prefix_tokens=1)
    left = (x, attended[:, kept]) if crossed else (attended[:, kept], None)
    alone = attention.attention_factors(*left, num_prefix_tokens=1)
    places = torch.arange(4) if crossed else kept
    expected = torch.zeros(1, 2, x.shape[1], 9, dtype=torch.float64)
    expected[:, :, places[:, None], kept] = alone.rows(range(len(places)))
    torch.testing.assert_close(factors.rows(range(x.shape[1])), expected, **ROUNDING)
    torch.testing.assert_close(factors.column_sums(), expected.sum(2), **ROUNDING)


def test_factors_of_a_map_are_those_of_its_tokens():
    attention = SoftmaxFreeAttention(6, 2, normalization="token", dtype=torch.float64)
    maps = normal(2, 3, 4, 6, seed=0)
    rows = attention.attention_factors(maps).rows([0, 11])
    flat = attention.attention_factors(maps.flatten(1, 2), grid=(3, 4)).rows([0, 11])
    torch.testing.assert_close(rows, flat, rtol=0, atol=0)
    same = attention.attention_factors(maps, maps).rows([0, 11])
    torch.testing.assert_close(rows, same, rtol=0, atol=0)


def test_factors_of_ragged_sequences_are_refused():
    attention = SoftmaxFreeAttention(6, 2)
    x = torch.nested.nested_tensor_from_jagged(torch.randn(5, 6), torch.tensor([0, 2, 5]))
    with pytest.raises(ValueError, match=r"x must be \(batch, tokens, 6\) .*got a nested tensor"):
        attention.attention_factors(x)
