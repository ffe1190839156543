"""``"soft"`` and ``"soft_norm_official"``: the published iterations, 20 plain steps each."""

import torch
from torch import Tensor

from softattn.pinv.iteration import newton_steps, step_counts
from softattn.pinv.method import Method, Problem

_PUBLISHED_STEPS = 20


class Soft(Method):
    """20 steps from α (A + ridge · I), α = 1.8 / ‖A‖₁² (SOFT, NeurIPS 2021)."""

    name = "soft"
    layer_ridge = 0.01
    converges = False

    def solve(self, problem: Problem, iterations: int | None) -> tuple[Tensor, Tensor]:
        """See ``Method.solve``."""
        norm = problem.matrices.abs().sum(-2).amax(-1)[..., None, None]
        return _steps_from(1.8 / norm.square() * problem.target, problem, iterations)


class SoftNormOfficial(Method):
    """What the authors' code does for SOFT-Norm: one step size for the whole batch.

    α = 2 / ‖A‖₁² of the largest norm in the batch is halved up to ten times while ‖I − α A²‖₁ of
    any matrix exceeds 1.01. Then come 20 steps from α (A + ridge · I).
    """

    name = "soft_norm_official"
    converges = False

    def solve(self, problem: Problem, iterations: int | None) -> tuple[Tensor, Tensor]:
        """See ``Method.solve``."""
        a = problem.matrices
        alpha = 2 / a.abs().sum(-2).amax().square()
        identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        square = (a @ a).detach()
        for _ in range(10):
            distance = (identity - alpha * square).abs().sum(-2).amax()
            alpha = torch.where(distance > 1.01, alpha / 2, alpha)
        return _steps_from(alpha * problem.target, problem, iterations)


def _steps_from(start: Tensor, problem: Problem, iterations: int | None) -> tuple[Tensor, Tensor]:
    steps = _PUBLISHED_STEPS if iterations is None else iterations
    inverse = newton_steps(problem.target, start, steps, on_triton=problem.on_triton)
    return inverse, step_counts(problem.target, steps)
