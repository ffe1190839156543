"""The attention matrix by its factors is what the operator multiplies values by."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, padding_masks, problems

from softattn import attention_factors, softmax_free_attention

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
