"""``"minimax"``: steps that are the best for the interval known to hold the spectrum."""

import operator

import torch
from torch import Tensor

from softattn.common.compiler import settles_symbols
from softattn.common.newton_schedule import steps_until
from softattn.pinv.iteration import newton_steps, step_counts, with_implicit_gradient
from softattn.pinv.method import Method, Problem

# Below it float32 cannot tell A + ridge · I from A.
_LEAST_RIDGE = 1e-12


class Minimax(Method):
    """Scaled steps from I / ‖A‖∞, for symmetric positive definite A + ridge · I.

    Where entries are at most 1, ‖A‖∞ is at most size + ridge. So the interval that holds the
    spectrum, and with it the number of steps, is known before anything is computed.
    """

    name = "minimax"
    layer_ridge = 0.01
    converges = True

    def check(self, ridge: float) -> None:
        """The ridge is the lower bound on the spectrum, so there must be one."""
        if ridge < _LEAST_RIDGE:
            raise ValueError(
                f"method='minimax' needs ridge > 0, at least {_LEAST_RIDGE}, its lower bound on "
                f"the spectrum, got {ridge}: the paper's is 0.01; without one use "
                "method='transpose'"
            )

    def solve(self, problem: Problem, iterations: int | None) -> tuple[Tensor, Tensor]:
        """See ``Method.solve``."""
        target, lower = problem.target, _lower_end(problem)
        if iterations is not None:
            return _inverse(problem, lower, iterations), step_counts(target, iterations)
        steps = steps_until(lower, torch.finfo(target.dtype).eps)
        with torch.no_grad():
            inverse = _inverse(problem, lower, steps)
        inverse = with_implicit_gradient(target, inverse, full_rank=True)
        return inverse, step_counts(target, steps)


def _inverse(problem: Problem, lower: float, steps: int) -> Tensor:
    target = problem.target
    norm = target.abs().sum(-1).amax(-1)[..., None, None]
    start = torch.eye(target.shape[-1], dtype=target.dtype, device=target.device) / norm
    return newton_steps(target, start, steps, lower=lower, on_triton=problem.on_triton)


def _lower_end(problem: Problem) -> float:
    """The lower end of an interval [l, 1] that holds the spectrum of A / ‖A‖∞."""
    size, ridge = problem.matrices.shape[-1], problem.ridge
    if settles_symbols():
        # The number of steps is settled when they are traced.
        size, ridge = operator.index(size), _settled(ridge)
    return ridge / (size + ridge)


def _settled(number: float) -> float:
    """The number itself where a compiler, asked for dynamic sizes, has put a symbol for it."""
    from torch.fx.experimental.symbolic_shapes import guard_scalar

    return guard_scalar(number)
