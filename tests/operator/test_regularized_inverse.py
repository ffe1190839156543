"""(A + ε I)⁻¹ by a Cholesky factorisation, which eager calls take on a CPU."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import normal, seeds
from torch.autograd import gradcheck, gradgradcheck

from softattn import NewtonPinv, gaussian_kernel
from softattn.backends import nystrom
from softattn.backends.backend import EAGER
from softattn.eager import regularized_inverse
from softattn.pinv import resolve_pinv

RIDGE = 0.01


def gram_matrices(*shape: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    landmarks = spread * normal(*shape, 4, seed=seed)
    return gaussian_kernel(landmarks, landmarks)


def regularized(gram: torch.Tensor) -> torch.Tensor:
    return gram + RIDGE * torch.eye(gram.shape[-1], dtype=gram.dtype)


@given(
    outer=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    m=st.integers(0, 40),
    spread=st.floats(0, 3),
    dtype=st.sampled_from((torch.float32, torch.float64)),
    seed=seeds,
)
def test_it_is_the_inverse(outer, m, spread, dtype, seed):
    gram = gram_matrices(*outer, m, seed=seed, spread=spread).to(dtype)
    inverse = regularized_inverse(gram, RIDGE)
    assert inverse.dtype == dtype
    exact = torch.linalg.inv(regularized(gram.double()))
    # Eigenvalues are between the ridge and m + ridge.
    condition = (m + RIDGE) / RIDGE
    torch.testing.assert_close(
        inverse.double(), exact, rtol=0, atol=4 * condition * torch.finfo(dtype).eps / RIDGE
    )


def test_newton_s_steps_converge_to_it():
    gram = gram_matrices(2, 3, 49, seed=0).float()
    newton = NewtonPinv("minimax", ridge=RIDGE)(gram)
    torch.testing.assert_close(regularized_inverse(gram, RIDGE), newton, rtol=1e-3, atol=1e-3)


def test_derivatives():
    def inverse(gram):
        # A factorisation reads one triangle.
        return regularized_inverse((gram + gram.mT) / 2, RIDGE)

    gram = gram_matrices(2, 1, 5, seed=1).requires_grad_()
    assert gradcheck(inverse, gram)
    assert gradgradcheck(inverse, gram)


def test_vmap():
    gram = gram_matrices(3, 2, 6, seed=2)
    mapped = torch.vmap(lambda gram: regularized_inverse(gram, RIDGE))(gram)
    torch.testing.assert_close(mapped, regularized_inverse(gram, RIDGE))


@pytest.mark.parametrize("place", [0, 3, 5])
def test_nan_fills_its_own_matrix_and_no_other(place):
    gram = gram_matrices(1, 3, 6, seed=3)
    expected = regularized_inverse(gram, RIDGE)
    gram[0, 1, place] = gram[0, 1, :, place] = torch.nan
    inverse = regularized_inverse(gram, RIDGE)
    assert inverse[0, 1].isnan().all()
    assert torch.equal(inverse[0, ::2], expected[0, ::2])


def test_a_ridge_within_rounding_is_left_to_newton_s_steps():
    gram = gram_matrices(1, 1, 64, seed=4, spread=0.01).float()
    assert regularized_inverse(gram, 1e-6) is None
    assert regularized_inverse(gram.double(), 1e-6) is not None


def test_calls_use_it_for_a_converged_inverse_alone():
    landmarks = normal(1, 2, 5, 3, seed=5)
    asked = []

    def recorded(gram, ridge):
        asked.append(ridge)
        return regularized_inverse(gram, ridge)

    backend = replace(EAGER, regularized_inverse=recorded)
    for pinv in (
        resolve_pinv(None, "auto"),
        resolve_pinv("minimax", "eager"),
        NewtonPinv("minimax", ridge=RIDGE, iterations=3),
        NewtonPinv("soft", ridge=RIDGE),
        torch.linalg.inv,
    ):
        nystrom.middle_factor(
            backend,
            landmarks,
            normalization="token",
            pinv=pinv,
            scale=0.5,
            landmark_padding_mask=None,
        )
    assert asked == [RIDGE, RIDGE]
