"""Errors, steps and times of the inverses at one spread of the landmarks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.common.timing import Timing, time_in_turns, warm_up
from benchmarks.pinv.methods import METHODS, NEWTON, newton, shifted, steps_taken
from softattn import gaussian_kernel


@dataclass(frozen=True)
class Errors:
    """Relative Frobenius errors over a batch of matrices."""

    median: float
    worst: float

    @classmethod
    def of(cls, inverse: Tensor, truth: Tensor) -> "Errors":
        """Errors of ``inverse`` against ``truth`` in float64; a matrix with NaN counts as inf."""
        distance = torch.linalg.matrix_norm(inverse.double() - truth)
        errors = (distance / torch.linalg.matrix_norm(truth)).nan_to_num(nan=torch.inf)
        return cls(float(errors.median()), float(errors.max()))


@dataclass(frozen=True)
class Spread:
    """The results of all methods on one spectrum.

    spread: standard deviation of the landmarks' features.
    condition: of A + ridge · I, the median over the matrices.
    steps: that the Newton methods take by default.
    errors_by_steps: of the Newton methods, after 0, 1, 2, … steps.
    """

    spread: float
    condition: float
    errors: dict[str, Errors]
    steps: dict[str, int]
    timings: dict[str, Timing]
    errors_by_steps: dict[str, list[Errors]]


def gram_matrices(
    spread: float, *, matrices: int, size: int, features: int, dtype: torch.dtype, device: str
) -> Tensor:
    """Gaussian Gram matrices (matrices, size, size) of landmarks drawn from N(0, spread²)."""
    landmarks = spread * torch.randn(matrices, 1, size, features, dtype=torch.float64)
    return gaussian_kernel(landmarks, landmarks)[:, 0].to(device=device, dtype=dtype)


def measure_spread(
    spread: float,
    a: Tensor,
    ridge: float,
    *,
    max_steps: int,
    rounds: int,
    seconds: float,
    done: Callable[[str], None],
) -> Spread:
    """Runs all methods on the matrices ``a``; the truth is float64 ``torch.linalg.pinv``."""
    target = shifted(a.double(), ridge)
    truth = torch.linalg.pinv(target, hermitian=True)
    calls = {name: partial(inverse, a, ridge) for name, inverse in METHODS.items()}
    warm = {name: warm_up(call, a.device.type) for name, call in calls.items()}
    return Spread(
        spread=spread,
        condition=float(_condition_numbers(target).median()),
        errors={name: Errors.of(call(), truth) for name, call in calls.items()},
        steps={name: steps_taken(name, a, ridge) for name in NEWTON},
        timings=time_in_turns(warm, rounds=rounds, seconds=seconds, done=done),
        errors_by_steps={
            name: [Errors.of(newton(name, a, ridge, k), truth) for k in range(max_steps + 1)]
            for name in NEWTON
        },
    )


def _condition_numbers(a: Tensor) -> Tensor:
    """Of symmetric matrices, by their eigenvalues: singular values take seconds on a GPU."""
    magnitudes = torch.linalg.eigvalsh(a).abs()
    return magnitudes.amax(-1) / magnitudes.amin(-1)
