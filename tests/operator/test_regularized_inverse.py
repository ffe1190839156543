"""(A + ε I)⁻¹ by a Cholesky factorisation, which eager calls take on a CPU."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import normal, seeds
from torch.autograd import gradcheck, gradgradcheck

from softattn import NewtonPinv, gaussian_kernel, softmax_free_attention
from softattn.backends import nystrom
from softattn.backends.backend import EAGER
from softattn.eager import regularized_inverse
from softattn.pinv import resolve_pinv, ridge_of

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
    # The error of X is at most a few ε κ ‖X‖. Eigenvalues are between the ridge and m + ridge, so κ
    # is at most their ratio, and ‖X‖ at most 1 / ridge.
    condition, norm = (m + RIDGE) / RIDGE, 1 / RIDGE
    torch.testing.assert_close(
        inverse.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps * condition * norm
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


class Doubled(NewtonPinv):
    def forward(self, a):
        return 2 * super().forward(a)


def with_a_hook(register: str) -> NewtonPinv:
    pinv = NewtonPinv("minimax", ridge=RIDGE)
    getattr(pinv, register)(lambda *_: None)
    return pinv


def with_its_own_forward() -> NewtonPinv:
    pinv = NewtonPinv("minimax", ridge=RIDGE)
    pinv.forward = torch.linalg.inv
    return pinv


class Learned(torch.nn.Module):
    """A module with a ridge of its own."""

    def __init__(self):
        super().__init__()
        self.ridge = self.regularization = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, a):
        return torch.linalg.inv(a + self.ridge * torch.eye(a.shape[-1]))


@pytest.mark.parametrize(
    ("pinv", "ridge"),
    [
        (resolve_pinv(None), RIDGE),
        (resolve_pinv("minimax", "eager"), RIDGE),
        (NewtonPinv("minimax", ridge=0.5), 0.5),
        (NewtonPinv("minimax", ridge=RIDGE, impl="triton"), None),
        (NewtonPinv("minimax", ridge=RIDGE, iterations=3), None),
        (NewtonPinv("soft", ridge=RIDGE), None),
        (NewtonPinv("transpose"), None),
        (Doubled("minimax", ridge=RIDGE), None),
        (with_a_hook("register_forward_hook"), None),
        (with_a_hook("register_forward_pre_hook"), None),
        (with_a_hook("register_full_backward_hook"), None),
        (with_a_hook("register_full_backward_pre_hook"), None),
        (with_its_own_forward(), None),
        (Learned(), None),
        (torch.linalg.inv, None),
    ],
    ids=str,
)
def test_it_stands_for_the_converged_inverse_alone(pinv, ridge):
    assert ridge_of(pinv, "eager") == ridge


def test_calls_use_it():
    landmarks = normal(1, 2, 5, 3, seed=5)
    asked = []

    def recorded(gram, ridge):
        asked.append(ridge)
        return regularized_inverse(gram, ridge)

    for ridge in (RIDGE, None):
        nystrom.middle_factor(
            replace(EAGER, regularized_inverse=recorded),
            landmarks,
            normalization="token",
            pinv=resolve_pinv(None),
            ridge=ridge,
            scale=0.5,
            landmark_padding_mask=None,
        )
    assert asked == [RIDGE]


def test_a_module_of_the_user_is_called():
    tokens, pinv = normal(1, 2, 9, 3, seed=6).float(), Learned()
    softmax_free_attention(tokens, None, tokens, tokens[:, :, :4], pinv=pinv).sum().backward()
    assert pinv.ridge.grad != 0


def test_an_inverse_on_triton_is_refused_on_a_cpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    tokens = normal(1, 2, 9, 3, seed=7).float()
    pinv = NewtonPinv("minimax", ridge=RIDGE, impl="triton")
    with pytest.raises(ValueError, match="impl='triton' was asked for"):
        softmax_free_attention(tokens, None, tokens, tokens[:, :, :4], pinv=pinv)
