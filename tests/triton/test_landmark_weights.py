"""What lies between the passes: sums over stretches, W = M S and the gradients of both."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.strategies import normal, seeds

from softattn import kernels
from softattn.common.centering import median_token

pytestmark = pytest.mark.usefixtures("kernel_tiles", "poisoned_memory")

few = settings(max_examples=max(settings.default.max_examples // 4, 1))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# The digits of two pieces, and of float32's products.
ROUNDING = {torch.float32: 2.0**-20, torch.float16: 2.0**-19, torch.bfloat16: 2.0**-14}


def whole(pieces):
    """The float64 matrix that pieces stand for."""
    matrix = pieces.first.double()
    if pieces.rest is not None:
        matrix = matrix + pieces.rest.double()
    return (matrix if pieces.unit is None else matrix * pieces.unit[..., None, None]).cpu()


def assert_keeps_digits(actual, truth, terms, dtype=torch.float32):
    """Asserts that the error is within rounding of ``terms``, the sum of absolute terms."""
    assert actual.shape == truth.shape
    assert actual.isfinite().all()
    assert (actual.cpu() - truth).abs().amax() <= ROUNDING[dtype] * terms.abs().amax()


problems = {
    "stretches": st.integers(1, 9),
    "m": st.integers(1, 36),
    "d_v": st.integers(1, 20),
    "ones": st.booleans(),
    "dtype": st.sampled_from(DTYPES),
    "seed": seeds,
}


@few
@given(**problems, symmetric=st.booleans(), unit=st.sampled_from([1.0, 2.0**20]))
def test_weights(device, stretches, m, d_v, ones, dtype, seed, symmetric, unit):
    # float16 itself ends at 65,504.
    partial = unit * normal(2, 2, stretches, m, d_v + ones, seed=seed).float()
    middle = unit * normal(2, 2, m, m, seed=seed + 1).float()
    sums, weights, of_middle = kernels.landmark_weights(
        partial.to(device),
        middle.to(device),
        d_v,
        dtype,
        with_middle=not symmetric,
        with_symmetric_middle=symmetric,
    )
    s = partial.double().sum(2)
    assert_keeps_digits(sums, s, partial.double().abs().sum(2))
    truth, terms = middle.double() @ s, middle.double().abs() @ s.abs()
    assert weights.pieces.first.dtype == dtype
    assert_keeps_digits(whole(weights.pieces), truth[..., :d_v], terms, dtype)
    assert (weights.column is not None) == ones
    if ones:
        assert_keeps_digits(weights.column, truth[..., d_v], terms)
    cut = middle.double() + middle.double().mT if symmetric else middle.double()
    assert_keeps_digits(whole(of_middle), cut, cut, dtype)


@few
@given(**problems, diagonal=st.booleans())
def test_gradient(device, stretches, m, d_v, ones, dtype, seed, diagonal):
    partial = normal(2, 2, stretches, m, d_v + ones, seed=seed).float()
    of_diagonal = normal(2, 2, stretches + 1, m, m, seed=seed + 1).float() if diagonal else None
    middle = normal(2, 2, m, m, seed=seed + 2).float()
    sums = normal(2, 2, m, d_v + ones, seed=seed + 3).float()
    grad_sums, grad_middle = kernels.landmark_weights_gradient(
        partial.to(device),
        of_diagonal.to(device) if diagonal else None,
        middle.to(device),
        sums.to(device),
        d_v,
        dtype,
    )
    dw = partial.double().sum(2)
    truth, terms = middle.double().mT @ dw, middle.double().abs().mT @ dw.abs()
    assert_keeps_digits(whole(grad_sums.pieces), truth[..., :d_v], terms, dtype)
    assert (grad_sums.column is not None) == ones
    if ones:
        assert_keeps_digits(grad_sums.column, truth[..., d_v], terms)
    truth, terms = dw @ sums.double().mT, dw.abs() @ sums.double().abs().mT
    if diagonal:
        truth = truth - of_diagonal.double().sum(2)
        terms = terms + of_diagonal.double().abs().sum(2)
    assert_keeps_digits(grad_middle, truth, terms)


@pytest.mark.parametrize("stretches", [1, 2, 33, 70])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [None, 1, -1])
def test_add_stretches(device, stretches, dtype, sign):
    partial = normal(2, 1, stretches, 5, 7, seed=0).float().to(device)
    start = normal(2, 1, 5, 7, seed=1).to(device, dtype)
    options = {} if sign is None else {"start": start, "subtract": sign < 0}
    total = kernels.add_stretches(partial, dtype, **options)
    assert total.dtype == dtype and total.shape == (2, 1, 5, 7)
    truth = partial.double().sum(2)
    terms = partial.double().abs().sum(2)
    if sign is not None:
        truth, terms = start.double() + sign * truth, start.double().abs() + terms
    rounding = torch.finfo(dtype).eps * truth.abs() + 2.0**-20 * terms
    assert ((total.double() - truth).abs() <= rounding).all()


@pytest.mark.parametrize("stretches", [32, 33])
def test_many_stretches_are_added_beforehand(device, stretches):
    partial = normal(1, 1, stretches, 3, 2, seed=0).float().to(device)
    few = kernels.few_stretches(partial)
    assert few.shape[2] == (32 if stretches == 32 else 1)
    torch.testing.assert_close(few.sum(2), partial.sum(2), rtol=1e-5, atol=1e-5)


def test_sizes_that_do_not_fit():
    assert kernels.fit_landmark_weights(128, 128)
    assert not kernels.fit_landmark_weights(129, 64)
    assert not kernels.fit_landmark_weights(64, 129)
    assert not kernels.fit_landmark_weights(0, 64)


@few
@given(n=st.integers(0, 70), d=st.integers(1, 20), seed=seeds)
def test_median_token(device, n, d, seed):
    tokens = normal(2, 2, n, d, seed=seed).float()
    if n > 3:
        tokens[0, 0, 2, 0] = float("nan")
        tokens[0, 0, 3] = tokens[0, 0, 1]
    median = kernels.median_token(tokens.to(device))
    torch.testing.assert_close(median.cpu(), median_token(tokens)[:, :, 0], rtol=0, atol=0)
