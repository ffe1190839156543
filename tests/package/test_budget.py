import pytest
import torch
from support.budget import assert_within_budget

TRUTH = torch.linspace(-1, 1, 50, dtype=torch.float64)
BASELINE = TRUTH.float()


def test_rounded_truth_is_within_the_budget():
    assert_within_budget(BASELINE.clone(), TRUTH, baseline=BASELINE)


@pytest.mark.parametrize("bias", [1e-5, -1e-5])
def test_small_bias_is_not(bias):
    with pytest.raises(AssertionError, match="over the budget"):
        assert_within_budget(BASELINE + bias, TRUTH, baseline=BASELINE)


def test_one_wrong_element_is_not():
    actual = BASELINE.clone()
    actual[17] += 1e-4
    with pytest.raises(AssertionError, match="over the budget"):
        assert_within_budget(actual, TRUTH, baseline=BASELINE)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_is_not(value):
    actual = BASELINE.clone()
    actual[3] = value
    with pytest.raises(AssertionError, match="not finite"):
        assert_within_budget(actual, TRUTH, baseline=BASELINE)


def test_truth_that_is_not_finite_is_refused():
    truth = TRUTH.clone()
    truth[0] = float("nan")
    with pytest.raises(AssertionError, match="truth itself"):
        assert_within_budget(BASELINE, truth, baseline=BASELINE)


def test_wrong_shape_is_not():
    with pytest.raises(AssertionError, match="shape"):
        assert_within_budget(BASELINE[None], TRUTH, baseline=BASELINE)


def test_wrong_dtype_is_not():
    with pytest.raises(AssertionError, match="dtype"):
        assert_within_budget(BASELINE.half(), TRUTH, baseline=BASELINE)


def test_bad_baseline_widens_the_budget_by_its_own_error_alone():
    assert_within_budget(BASELINE + 1.9e-3, TRUTH, baseline=BASELINE + 1e-3)
    with pytest.raises(AssertionError, match="over the budget"):
        assert_within_budget(BASELINE + 2.1e-3, TRUTH, baseline=BASELINE + 1e-3)


def test_baseline_that_is_not_finite_allows_rounding_alone():
    baseline = BASELINE.clone()
    baseline[3] = float("nan")
    assert_within_budget(BASELINE, TRUTH, baseline=baseline)
    with pytest.raises(AssertionError, match="over the budget"):
        assert_within_budget(BASELINE + 1e-5, TRUTH, baseline=baseline)


def test_inherited_error_is_added_to_the_budget():
    assert_within_budget(BASELINE + 0.9e-3, TRUTH, baseline=BASELINE, inherited=1e-3)
    with pytest.raises(AssertionError, match="over the budget"):
        assert_within_budget(BASELINE + 1.1e-3, TRUTH, baseline=BASELINE, inherited=1e-3)
