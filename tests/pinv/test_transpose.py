"""``method="transpose"`` on any spectrum: what is kept, what is dropped, always finite."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.named_matrices import NAMED_MATRICES, with_spectrum
from support.strategies import seeds

import softattn
from softattn import newton_pinv, newton_pinv_ex

norm = torch.linalg.matrix_norm


EPS = torch.finfo(torch.float64).eps  # of the arithmetic, whatever the dtype


def cut_of(a: torch.Tensor) -> float:
    """The documented cut, relative to the largest singular value."""
    return max(a.shape[-2:]) * torch.finfo(a.dtype).eps + 256 * EPS


def ranks_allowed(a: torch.Tensor, singular: torch.Tensor) -> list[int]:
    """How many singular values the inverse may keep: one number, unless rounding decides."""
    cut = cut_of(a) * singular[0]
    # Within a few percent of the cut rounding decides.
    fewest, most = (int((singular > factor * cut).sum()) for factor in (1.1, 0.95))
    ranks = list(range(fewest, most + 1))
    if a.dtype == torch.float64:
        # The documented exception: small ones behind a gap, which the products round away.
        for rank in range(1, fewest):
            condition = (1 / singular[:rank]).norm() * singular.norm()
            if singular[rank] <= 8 * EPS * condition * singular[0]:
                ranks.append(rank)
    return ranks


def excess(inverse, u, singular, vh, rank, cut, eps) -> float:
    """How much more than allowed the inverse of the first ``rank`` singular values is missed."""
    if rank == 0:
        return 0.0 if not inverse.any() else float("inf")
    truth = (vh[:rank].mT / singular[:rank]) @ u[:, :rank].mT
    smallest, closeness = singular[rank - 1], 1.0
    if rank < len(singular):
        # A singular vector turns with those that are close to it.
        closeness = smallest / (smallest - singular[rank])
        if singular[rank] > cut / 10:
            smallest = cut  # which the iteration has inverted half before it dropped it
    allowed = eps + 20 * EPS * closeness * singular[0] / smallest
    return float(norm(inverse - truth) / norm(truth) - allowed)


def assert_is_the_pinv_at_its_cut(a: torch.Tensor) -> None:
    """The inverse is that of the singular values above the cut, or the residual says how far."""
    inverse, info = newton_pinv_ex(a)
    assert inverse.isfinite().all()
    unit = a.double().abs().amax().clamp(min=1e-300)
    u, singular, vh = torch.linalg.svd(a.double() / unit, full_matrices=False)
    cut, eps = cut_of(a) * singular[0], torch.finfo(a.dtype).eps
    ranks = ranks_allowed(a, singular)
    least = min(excess(inverse.double() * unit, u, singular, vh, rank, cut, eps) for rank in ranks)
    # One that is neither kept nor dropped is missed by f / σ and adds f (1 − f) / σ to V A V − V.
    reported = 2 * info.residual if len(ranks) > 1 else 0
    assert least <= reported, f"relative error {least} more than allowed, at ranks {ranks}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMED_MATRICES)
def test_named_matrices(name, dtype):
    assert_is_the_pinv_at_its_cut(NAMED_MATRICES[name].to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=seeds, ratio=st.floats(0.2, 0.9), extra=st.integers(0, 5), rows=st.integers(1, 40))
def test_geometric_spectra(dtype, seed, ratio, extra, rows):
    spectrum = [ratio**i for i in range(rows)]
    assert_is_the_pinv_at_its_cut(with_spectrum(rows + extra, rows, spectrum, seed).to(dtype))


def test_gram_of_points_in_two_dimensions():
    landmarks = torch.randn(1, 1, 49, 2)
    gram = softattn.gaussian_kernel(landmarks, landmarks)
    inverse, info = newton_pinv_ex(gram)
    assert inverse.isfinite().all()
    assert info.residual < 1e-3
    projector = gram.double() @ inverse.double()
    assert norm(projector - projector.mT) <= 1e-3 * norm(projector)


@pytest.mark.parametrize("seed", range(10))
def test_layer_with_narrow_heads(seed):
    torch.manual_seed(seed)
    layer = softattn.SoftmaxFreeAttention(
        16, 4, landmarks=softattn.AvgPoolLandmarks(49), pinv="transpose"
    )
    x = torch.randn(1, 600, 16, requires_grad=True)
    output = layer(x)
    output.sum().backward()
    assert output.isfinite().all() and x.grad.isfinite().all()


@pytest.mark.parametrize(("ratio", "dtype"), [(0.5, torch.float32), (0.3, torch.float64)])
def test_falling_spectra_of_a_batch(ratio, dtype):
    spectrum = [ratio**i for i in range(40)]
    batch = torch.stack([with_spectrum(40, 40, spectrum, seed) for seed in range(20)]).to(dtype)
    for a, inverse in zip(batch, newton_pinv(batch), strict=True):
        torch.testing.assert_close(inverse, newton_pinv(a), rtol=0, atol=0)
        assert_is_the_pinv_at_its_cut(a)


@pytest.mark.parametrize("iterations", [1, 20, 100, 300])
@pytest.mark.parametrize("name", ["halving 40", "thirds 40", "rank 6", "zero", "heat kernel 40"])
def test_given_iterations_stay_finite(name, iterations):
    a = NAMED_MATRICES[name].float().requires_grad_()
    inverse = newton_pinv(a, iterations=iterations)
    inverse.sum().backward()
    assert inverse.isfinite().all() and a.grad.isfinite().all()


@pytest.mark.parametrize("name", ["rank 6", "hilbert 3", "wide", "two groups"])
def test_enough_given_iterations_reach_the_inverse(name):
    a = NAMED_MATRICES[name]
    torch.testing.assert_close(newton_pinv(a, iterations=120), newton_pinv(a), rtol=1e-6, atol=1e-6)


def test_given_iterations_under_vmap():
    batch = torch.stack([NAMED_MATRICES["halving 40"], NAMED_MATRICES["heat kernel 40"]]).float()
    mapped = torch.vmap(lambda a: newton_pinv(a, iterations=60))(batch)
    torch.testing.assert_close(mapped, newton_pinv(batch, iterations=60))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_and_smallest_numbers(dtype):
    limits = torch.finfo(dtype)
    huge = torch.full((1, 2), 0.9 * limits.max, dtype=dtype)
    torch.testing.assert_close(newton_pinv(huge) * huge.mT, torch.full((2, 1), 0.5, dtype=dtype))
    tiny = torch.full((1, 2), limits.tiny, dtype=dtype)
    torch.testing.assert_close(newton_pinv(tiny) * tiny.mT, torch.full((2, 1), 0.5, dtype=dtype))
    # An inverse that is too large for its dtype is infinite.
    assert newton_pinv(tiny[:, :1] / 16).isposinf().all()
