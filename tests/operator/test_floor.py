"""Denominators that pass through 0: queries, keys and landmarks far apart."""

from dataclasses import replace

import pytest
import torch
from support.denominators import denominator_and_terms, problem_across_the_floor
from support.strategies import QUOTIENTS

from softattn import attention_factors, softmax_free_attention
from softattn.common.quotient import FLOOR


@pytest.fixture(params=QUOTIENTS)
def problem(request):
    return problem_across_the_floor(request.param)


def kinds_of_rows(problem):
    denominator, terms = (x[..., 0] for x in denominator_and_terms(problem))
    return denominator, terms, denominator.abs() < FLOOR * terms


def test_constant_values_shrink_at_the_floor_and_nowhere_else(problem):
    denominator, terms, at_floor = kinds_of_rows(problem)
    constant = replace(problem, value=torch.ones_like(problem.value))
    ones = constant.solve(softmax_free_attention)[..., 0]
    torch.testing.assert_close(ones[~at_floor], torch.ones_like(ones[~at_floor]))
    expected = (denominator.abs() / (FLOOR * terms))[at_floor]
    torch.testing.assert_close(ones[at_floor], expected)


def test_rows_of_the_attention_matrix_have_the_same_floor(problem):
    factors = attention_factors(
        problem.query, problem.key, problem.landmarks, normalization=problem.normalization
    )
    rows = factors.rows(list(range(problem.query.shape[2])))
    torch.testing.assert_close(rows @ problem.value, problem.solve(softmax_free_attention))


def test_gradients_at_the_floor(problem):
    inputs = (problem.query, problem.key, problem.value, problem.landmarks)
    inputs = tuple(x.clone().requires_grad_() for x in inputs)

    def attend(*tensors):
        return softmax_free_attention(*tensors, normalization=problem.normalization)

    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(attend, inputs, fast_mode=True)
