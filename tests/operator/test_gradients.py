"""First and second derivatives, by finite differences in float64."""

import pytest
import torch
from hypothesis import assume, given
from support.budget import assert_within_budget
from support.denominators import denominators_stay_off_the_floor
from support.strategies import NORMALIZATIONS, QUOTIENTS, normal, problems
from torch.autograd import gradcheck, gradgradcheck

import softattn
from softattn import softmax_free_attention

pytestmark = pytest.mark.usefixtures("tiles")


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pinv", ["minimax", "soft", "transpose"])
def test_gradcheck(normalization, crossed, masked, pinv):
    n_k = 5
    query = normal(2, 1, 4 if crossed else n_k, 3, seed=0).requires_grad_()
    key = normal(2, 1, n_k, 3, seed=1).requires_grad_()
    value = normal(2, 1, n_k, 2, seed=2).requires_grad_()
    landmarks = normal(2, 1, 3, 3, seed=3).requires_grad_()
    padding = torch.tensor([[False, False, False, True, True], [False] * 5])
    landmark_padding = torch.tensor([[False, False, True], [False] * 3])

    def attend(query, value, landmarks, key=None):
        return softmax_free_attention(
            query,
            key,
            value,
            landmarks,
            normalization=normalization,
            pinv=pinv,
            key_padding_mask=padding if masked else None,
            landmark_padding_mask=landmark_padding if masked else None,
        )

    inputs = (query, value, landmarks, key) if crossed else (query, value, landmarks)
    assert gradcheck(attend, inputs)
    # Along random directions: all of them would take most of the time of this file.
    assert gradgradcheck(attend, inputs, fast_mode=True)


def test_gradients_of_landmarks_taken_from_the_tokens():
    tokens = normal(1, 2, 6, 3, seed=0).requires_grad_()
    value = normal(1, 2, 6, 2, seed=1).requires_grad_()

    def attend(tokens, value):
        landmarks = softattn.AvgPoolLandmarks(2)(tokens)
        return softmax_free_attention(tokens, None, value, landmarks, normalization="token")

    assert gradcheck(attend, (tokens, value))
    assert gradgradcheck(attend, (tokens, value))


@given(problem=problems(dtypes=(torch.float64, torch.float32, torch.bfloat16)))
def test_gradients_are_within_budget(problem):
    assume(denominators_stay_off_the_floor(problem))
    assume(problem.query.numel() and problem.value.numel())

    def gradients(problem, solve):
        problem = problem.map(lambda t: t.detach().requires_grad_())
        output = solve(problem)
        weights = normal(*output.shape, seed=5).to(output.dtype)
        weighted = output * weights
        return weighted.sum(-1), *torch.autograd.grad(weighted.sum(), problem.tensors())

    def oracle(wide):
        return wide.oracle(problem.runs())

    wide = torch.promote_types(problem.query.dtype, torch.float32)
    _, *actual = gradients(problem, lambda problem: problem.solve(softmax_free_attention))
    of_rows, *truth = gradients(problem.to(torch.float64), oracle)
    _, *plain = gradients(problem.to(wide), oracle)
    # The gradient through A⁺ has terms as large as ‖A⁺‖² times those of the output.
    far = (
        torch.cat([problem.query, problem.keys, problem.landmarks], 2).double().norm(dim=-1).amax()
    )
    magnitude = problem.magnitude().amax() * 100 * (1 + far**3)
    # The gradient of a denominator is computed from the output, which is rounded to its dtype.
    is_quotient = problem.normalization in QUOTIENTS
    rounding = torch.finfo(problem.value.dtype).eps * of_rows.abs().amax() if is_quotient else 0.0
    for a, t, p in zip(actual, truth, plain, strict=True):
        assert_within_budget(a, t, baseline=p.to(a.dtype), magnitude=magnitude, inherited=rounding)
