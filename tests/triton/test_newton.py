"""Newton's iteration on Triton: interpreted, or on a GPU with ``--device cuda``."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.budget import assert_within_budget
from support.strategies import normal, seeds, spreads

from softattn import gaussian_kernel, newton_pinv, newton_pinv_ex
from softattn import triton as operators
from softattn.pinv.iteration import newton_steps

pytestmark = pytest.mark.usefixtures("kernel_tiles", "poisoned_memory")

METHODS = ("minimax", "soft", "soft_norm_official")
few = settings(max_examples=max(settings.default.max_examples // 4, 1))


def gram_matrices(m: int, seed: int, spread: float, matrices: int = 3) -> torch.Tensor:
    points = normal(matrices, 1, m, 8, seed=seed, spread=spread)
    return gaussian_kernel(points, points)[:, 0]


@few
@given(
    m=st.integers(2, 36),
    seed=seeds,
    spread=spreads,
    method=st.sampled_from(METHODS),
    iterations=st.sampled_from([None, 1, 7]),
)
@example(m=36, seed=0, spread=0.1, method="minimax", iterations=None)
def test_inverse_is_within_budget(device, m, seed, spread, method, iterations):
    a = gram_matrices(m, seed, spread)
    if method == "soft_norm_official":
        iterations = min(iterations or 7, 7)  # its start lets more of them diverge
    options = {"method": method, "ridge": 0.01, "iterations": iterations}
    truth, plain = (newton_pinv(a.to(d), impl="eager", **options) for d in (a.dtype, torch.float32))
    actual = newton_pinv(a.to(device, torch.float32), impl="triton", **options)
    # Up to 1/ε is added and taken off again on the way.
    assert_within_budget(actual.cpu(), truth, baseline=plain, magnitude=100 * truth.abs().amax())


@few
@given(
    m=st.integers(2, 20),
    seed=seeds,
    method_and_iterations=st.sampled_from(
        [("minimax", None), ("minimax", 5), ("soft", None), ("soft", 5), ("soft_norm_official", 5)]
    ),
)
def test_gradient_is_within_budget(device, m, seed, method_and_iterations):
    method, iterations = method_and_iterations
    a = gram_matrices(m, seed, spread=1.0)
    weights = normal(*a.shape, seed=seed)

    def gradient(dtype, where, impl):
        x = a.to(where, dtype).requires_grad_()
        inverse = newton_pinv(x, method=method, ridge=0.01, iterations=iterations, impl=impl)
        return torch.autograd.grad((inverse * weights.to(inverse)).sum(), x)[0].cpu()

    truth = gradient(torch.float64, "cpu", "eager")
    plain = gradient(torch.float32, "cpu", "eager")
    actual = gradient(torch.float32, device, "triton")
    assert_within_budget(actual, truth, baseline=plain, magnitude=100 * truth.abs().amax())


@pytest.mark.parametrize("m", [47, 64, 97, 128])
def test_sizes_that_take_more_than_one_tile(device, m):
    a = gram_matrices(m, 0, spread=1.0, matrices=2)
    options = {"method": "minimax", "ridge": 0.01}
    actual, info = newton_pinv_ex(a.to(device, torch.float32), impl="triton", **options)
    plain, eager_info = newton_pinv_ex(a.float(), impl="eager", **options)
    truth = torch.linalg.inv(a + 0.01 * torch.eye(m, dtype=a.dtype))
    assert_within_budget(actual.cpu(), truth, baseline=plain, magnitude=truth.abs().amax())
    assert torch.equal(info.iterations.cpu(), eager_info.iterations)
    assert info.residual.max() <= 1e-4


@pytest.mark.parametrize("lower", [1e-3, 0.2, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_kernel_has_the_coefficients_of_the_schedule(device, lower, steps):
    spectrum = torch.linspace(lower, 1, 20, dtype=torch.float64)
    start = torch.ones(1, 20, dtype=torch.float64).diag_embed()
    expected = newton_steps(spectrum.diag()[None], start, steps, lower=lower)
    target = spectrum.diag()[None].to(device, torch.float32)
    actual = operators.newton(target, start.to(target), lower, steps)
    plain = newton_steps(spectrum.diag()[None].float(), start.float(), steps, lower=lower)
    assert_within_budget(actual.cpu(), expected, baseline=plain, magnitude=expected.amax() * 2)


def test_matrices_do_not_see_each_other(device):
    a = gram_matrices(20, 0, spread=1.0).to(device, torch.float32)
    other = a.clone()
    other[1:] = gram_matrices(20, 1, spread=3.0).to(a)[1:]
    other[2, 0, 0] = float("nan")
    inverses = [newton_pinv(x, method="minimax", ridge=0.01, impl="triton") for x in (a, other)]
    assert torch.equal(inverses[0][0], inverses[1][0])
    assert inverses[1][1].isfinite().all()
    assert inverses[1][2].isnan().any()


def test_half_precision_and_batch_shapes(device):
    a = gram_matrices(9, 0, spread=1.0, matrices=6).view(2, 3, 9, 9)
    inverse = newton_pinv(a.to(device, torch.bfloat16), method="soft", ridge=0.01, impl="triton")
    assert inverse.shape == (2, 3, 9, 9) and inverse.dtype == torch.bfloat16
    eager = newton_pinv(a.to(torch.bfloat16), method="soft", ridge=0.01, impl="eager")
    torch.testing.assert_close(inverse.cpu(), eager)


@pytest.mark.parametrize(
    ("options", "dtype", "m", "reason"),
    [
        ({"method": "transpose"}, torch.float32, 5, "residual after every step"),
        ({"method": "soft"}, torch.float64, 5, r"too little for torch\.float64"),
        ({"method": "soft"}, torch.float32, 129, "129 rows, the kernel holds 128"),
        ({"method": "soft", "iterations": 0}, torch.float32, 5, "no iterations"),
    ],
)
def test_what_has_no_kernel_says_why(device, options, dtype, m, reason):
    a = torch.eye(m, dtype=dtype, device=device)
    with pytest.raises(ValueError, match=f"impl='triton' was asked for, but .*{reason}"):
        newton_pinv(a, impl="triton", **options)
    torch.testing.assert_close(newton_pinv(a, **options), newton_pinv(a, impl="eager", **options))
