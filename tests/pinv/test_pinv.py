"""The Newton inverses: Penrose's conditions, accuracy, convergence, gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.named_matrices import with_spectrum
from support.strategies import normal, seeds
from torch.autograd import gradcheck, gradgradcheck

import softattn
from softattn import NewtonPinv, newton_pinv, newton_pinv_ex

norm = torch.linalg.matrix_norm


def gram_of_landmarks(spread: float, m: int = 49, batch: int = 3) -> torch.Tensor:
    points = normal(batch, 1, m, 32, seed=0, spread=spread)
    return softattn.gaussian_kernel(points, points)


@st.composite
def spectra(draw):
    rank = draw(st.integers(0, 6))
    return draw(st.lists(st.floats(1e-3, 1.0), min_size=rank, max_size=rank))


@given(
    spectrum=spectra(),
    extra_rows=st.integers(0, 4),
    extra_columns=st.integers(0, 4),
    seed=seeds,
    exponent=st.sampled_from([-30, -8, 0, 8, 30]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_penrose_conditions(spectrum, extra_rows, extra_columns, seed, exponent, dtype):
    rows, columns = max(len(spectrum) + extra_rows, 1), max(len(spectrum) + extra_columns, 1)
    a = (with_spectrum(rows, columns, spectrum, seed) * 10.0**exponent).to(dtype)
    inverse = newton_pinv(a)
    # In float64, so that the conditions themselves lose nothing; products of order 1.
    unit = 10.0**exponent
    x, v = a.double() / unit, inverse.double() * unit
    condition = max(spectrum, default=1) / min(spectrum, default=1)
    allowed = 50 * torch.finfo(dtype).eps * condition
    assert norm(x @ v @ x - x) <= allowed * norm(x)
    assert norm(v @ x @ v - v) <= allowed * norm(v)
    small, large = (v @ x, x @ v) if rows >= columns else (x @ v, v @ x)
    assert norm(small.mT - small) <= allowed * max(1, norm(small))
    # What the smaller projector loses reaches the larger one enlarged by ‖A‖ ‖V‖.
    enlarged = allowed + 2 * torch.finfo(torch.float64).eps * condition**2
    assert norm(large.mT - large) <= enlarged * max(1, norm(large))


@pytest.mark.parametrize("shape", [(64, 48), (48, 64), (8, 8), (200, 200), (3, 100), (1, 1)])
@pytest.mark.parametrize(
    "spectrum",
    [
        lambda k: [1.0] * k,
        lambda k: [1.0] * max(k // 2, 1),
        lambda k: [1.0] * max(k // 2, 1) + [1e-2] * (k > 1),
        lambda k: [1.0] * max(k // 2, 1) + [1e-4] * (k > 1),
        lambda k: [10 ** (-4 * i / k) for i in range(k)],
    ],
    ids=["flat", "rank-deficient", "one small", "one very small", "decaying"],
)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_no_worse_than_twice_the_svd(shape, spectrum, scale):
    exact = with_spectrum(*shape, spectrum(min(shape)))
    truth = torch.linalg.pinv(exact, rtol=1e-10)
    by_svd = torch.linalg.pinv(exact.float())
    inverse, info = newton_pinv_ex((exact * scale).float())
    floor = 1e-6
    error = norm(inverse.double() * scale - truth) / norm(truth)
    allowed = norm(by_svd.double() - truth) / norm(truth)
    assert error <= 2 * allowed + floor
    assert info.residual < 1e-2
    assert info.iterations < 60


def test_each_matrix_takes_its_own_steps():
    easy, hard = with_spectrum(6, 6, [1.0] * 6), with_spectrum(6, 6, [1.0, 1.0, 1e-3])
    together, info = newton_pinv_ex(torch.stack([easy, hard]))
    assert info.iterations[0] < info.iterations[1]
    for a, inverse, iterations in zip((easy, hard), together, info.iterations, strict=True):
        alone, alone_info = newton_pinv_ex(a)
        torch.testing.assert_close(inverse, alone, rtol=1e-12, atol=1e-12)
        assert iterations == alone_info.iterations


@pytest.mark.parametrize("method", ["transpose", "minimax", "soft"])
def test_other_matrices_leave_a_result_bit_identical(method):
    batch = gram_of_landmarks(1.0).float()
    other = torch.cat([batch[:1], gram_of_landmarks(0.01)[1:].float()])
    first = newton_pinv(batch, method=method, ridge=0.01)[0]
    torch.testing.assert_close(
        newton_pinv(other, method=method, ridge=0.01)[0], first, rtol=0, atol=0
    )


def test_nan_stays_in_its_matrix():
    batch = torch.stack([torch.eye(3), torch.full((3, 3), float("nan"))])
    inverse = newton_pinv(batch)
    torch.testing.assert_close(inverse[0], torch.eye(3))
    assert inverse[1].isnan().all()


def test_zero_and_empty_matrices():
    inverse, info = newton_pinv_ex(torch.zeros(2, 3, 4))
    torch.testing.assert_close(inverse, torch.zeros(2, 4, 3))
    torch.testing.assert_close(info.residual, torch.zeros(2))
    for shape in ((0, 3, 3), (2, 0, 3), (2, 3, 0)):
        assert newton_pinv(torch.zeros(shape)).shape == (shape[0], shape[2], shape[1])


@pytest.mark.parametrize("spread", [3.0, 1.0, 0.3, 0.1, 0.01, 1e-4])
def test_minimax_converges_on_collapsed_landmarks(spread):
    gram = gram_of_landmarks(spread)
    ridged = gram + 0.01 * torch.eye(49, dtype=torch.float64)
    truth = torch.linalg.inv(ridged)
    inverse, info = newton_pinv_ex(gram.float(), method="minimax", ridge=0.01)
    by_lu = torch.linalg.inv(ridged.float())
    error, allowed = norm(inverse - truth), norm(by_lu - truth)
    rounding = torch.finfo(torch.float32).eps * torch.linalg.cond(ridged)
    assert torch.all(error / norm(truth) <= 2 * allowed / norm(truth) + rounding)
    assert info.iterations.max() <= 12
    assert info.residual.max() <= 2 * rounding.max() + 1e-6


@pytest.mark.parametrize("m", [1, 2, 9, 49, 64])
def test_minimax_takes_few_steps(m):
    _, info = newton_pinv_ex(torch.ones(m, m), method="minimax", ridge=0.01)
    assert info.iterations <= 12


@pytest.mark.parametrize("iterations", [1, 3, 6])
def test_minimax_error_after_few_steps_is_the_best_that_its_interval_allows(iterations):
    m, ridge = 9, 0.1
    gram = torch.ones(m, m, dtype=torch.float64)
    inverse = newton_pinv(gram, method="minimax", ridge=ridge, iterations=iterations)
    distance = torch.eye(m) - inverse @ (gram + ridge * torch.eye(m, dtype=torch.float64))
    reached = torch.linalg.eigvals(distance).abs().max()
    # Chebyshev's polynomial is smallest on an interval among those with p(0) = 1, and each step
    # doubles the degree.
    lower = ridge / (m + ridge)
    best = 1 / math.cosh(2**iterations * math.acosh((1 + lower) / (1 - lower)))
    torch.testing.assert_close(reached.item(), best, rtol=1e-6, atol=0)


def test_the_papers_steps_do_not_converge_and_their_residual_says_so():
    gram = gram_of_landmarks(0.01).float()
    truth = torch.linalg.inv(gram.double() + 0.01 * torch.eye(49))
    inverse, info = newton_pinv_ex(gram, method="soft", ridge=0.01)
    assert torch.all(norm(inverse - truth) > 0.5 * norm(truth))
    assert torch.all(info.residual > 0.5)
    assert torch.all(info.iterations == 20)


def test_soft_norm_official_depends_on_the_batch_as_the_authors_code_does():
    batch = gram_of_landmarks(1.0).float()
    other = torch.cat([batch[:1], gram_of_landmarks(0.01)[1:].float()])
    first, second = (newton_pinv(a, method="soft_norm_official")[0] for a in (batch, other))
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("method", softattn.pinv.METHODS)
def test_iterations_are_counted_as_asked(method):
    _, info = newton_pinv_ex(gram_of_landmarks(1.0), method=method, ridge=0.01, iterations=7)
    assert torch.all(info.iterations == 7)


@pytest.mark.parametrize("shape", [(2, 3, 3), (2, 4, 3), (3, 5), (1, 1)])
def test_gradients_at_full_rank(shape):
    a = normal(*shape, seed=0).requires_grad_()
    assert gradcheck(newton_pinv, a)
    assert gradgradcheck(newton_pinv, a)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(5, 4, 2), (3, 3, 1), (2, 6, 1)])
def test_gradients_at_constant_deficient_rank(rows, columns, rank):
    left = normal(rows, rank, seed=0).requires_grad_()
    right = normal(rank, columns, seed=1).requires_grad_()

    def pinv(left, right):
        return newton_pinv(left @ right)

    assert gradcheck(pinv, (left, right))
    assert gradgradcheck(pinv, (left, right))


@pytest.mark.parametrize("method", ["minimax", "soft", "soft_norm_official"])
def test_gradients_of_gram_inverses(method):
    points = normal(2, 1, 4, 2, seed=0).requires_grad_()

    def pinv(points):
        gram = softattn.gaussian_kernel(points, points)
        return newton_pinv(gram, method=method, ridge=0.1)

    assert gradcheck(pinv, points)
    assert gradgradcheck(pinv, points)


@pytest.mark.parametrize("method", softattn.pinv.METHODS)
def test_given_steps_are_differentiated_as_they_are(method):
    a = gram_of_landmarks(1.0, m=3, batch=1)[0, 0].requires_grad_()

    def pinv(a):
        symmetric = (a + a.mT) / 2
        return newton_pinv(symmetric, method=method, ridge=0.01, iterations=3)

    assert gradcheck(pinv, a)
    assert gradgradcheck(pinv, a)


def test_gradient_where_the_start_alone_depends_on_the_matrix():
    a = gram_of_landmarks(1.0, m=3)[:, 0].requires_grad_()
    assert gradcheck(lambda a: newton_pinv(a, method="soft", ridge=0.01, iterations=2), a)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    gram = gram_of_landmarks(1.0).to(dtype)
    inverse = newton_pinv(gram, method="minimax", ridge=0.01)
    assert inverse.dtype == dtype
    expected = newton_pinv(gram.float(), method="minimax", ridge=0.01).to(dtype)
    torch.testing.assert_close(inverse, expected, rtol=0, atol=0)


def test_module_is_the_function():
    module = NewtonPinv("soft", ridge=0.02, iterations=11)
    gram = gram_of_landmarks(1.0)
    expected = newton_pinv(gram, method="soft", ridge=0.02, iterations=11)
    torch.testing.assert_close(module(gram), expected, rtol=0, atol=0)
    assert repr(module) == "NewtonPinv(method='soft', ridge=0.02, iterations=11)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "svd"}, "method must be one of 'transpose'"),
        ({"method": "minimax"}, "needs ridge > 0"),
        ({"ridge": -1.0}, "ridge must be a finite number"),
        ({"ridge": float("nan")}, "ridge must be a finite number"),
        ({"iterations": -1}, "iterations must be an int"),
        ({"iterations": 2.5}, "iterations must be an int"),
    ],
)
def test_bad_options_are_refused(options, message):
    for call in (newton_pinv, newton_pinv_ex):
        with pytest.raises(ValueError, match=message):
            call(torch.eye(3), **options)
    with pytest.raises(ValueError, match=message):
        NewtonPinv(**options)


def test_bad_matrices_are_refused():
    with pytest.raises(TypeError, match="floating point"):
        newton_pinv(torch.eye(3, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"torch\.Tensor, got list"):
        newton_pinv([[1.0]])
    with pytest.raises(ValueError, match=r"\(\.\.\., rows, columns\), got shape \(3,\)"):
        newton_pinv(torch.ones(3))
    for method, ridge in (("minimax", 0.1), ("soft", 0.0), ("transpose", 0.1)):
        with pytest.raises(ValueError, match=r"square matrices, got shape \(3, 4\)"):
            newton_pinv(torch.ones(3, 4), method=method, ridge=ridge)
