"""``"transpose"``: Moore–Penrose inverses of any matrix, from a multiple of Aᵀ.

The iteration acts on each singular value σ of A by itself. Let f = σ v, with v the factor that the
iterate V has in its place: f = 1 for a singular value that is inverted, 0 for one that is dropped.

1. Newton's steps V ← 2 V − V A V map f to 1 − (1 − f)². They double a small f and do not end
   before everything is inverted that rounding has left in place of zeros. So they stop after a
   number of steps that takes f to ½ for σ at the cut.
2. Steps V ← 3 V A V − 2 V A V A V map f to 3 f² − 2 f³, which sends f > ½ to 1 and f < ½ to 0 and
   leaves both there. They drop all below the cut, rounding included.
"""

import math
import operator
from typing import NamedTuple

import torch
from torch import Tensor

from softattn.common.compiler import settles_symbols
from softattn.pinv.iteration import step_counts, with_implicit_gradient
from softattn.pinv.method import Method, Problem
from softattn.pinv.norms import frobenius, largest_entry, relative, spectral_norm

# Units of rounding of the arithmetic by which the cut stays clear of the noise in V A.
_CLEARANCE = 256
# ‖I − V A‖ at which every singular value is well on its way to f = 1.
_NEAR_IDENTITY = 0.1
# Products of A, V and A miss A by fewer units of rounding, times ‖V‖ ‖A‖.
_UNITS_OF_ROUNDING = 8
# The slope of 3 f² − 2 f³ at ½ is 3/2: f beside it by 0.001 is settled in this many steps.
_MOST_SETTLING_STEPS = 20


class Transpose(Method):
    """Any matrix of any rank and shape; the residual tells when each matrix is done."""

    name = "transpose"
    takes_rectangular = True
    obstacle_to_triton = "method='transpose' looks at its residual after every step"
    converges = True

    def solve(self, problem: Problem, iterations: int | None) -> tuple[Tensor, Tensor]:
        """See ``Method.solve``."""
        target = problem.target
        if iterations is not None:
            return _after_steps(target, iterations), step_counts(target, iterations)
        with torch.no_grad():
            inverse, taken = _converged(target)
        return with_implicit_gradient(target, inverse, full_rank=False), taken


class _Scaled(NamedTuple):
    """Matrices ready for the iteration.

    tall: A or Aᵀ, whichever has no more columns than rows, with ‖A‖₂ just below 1.
    unit: the largest |entry| of A, by which it was divided first, (matrices, 1, 1).
    norm: ‖A‖₂ after that, by which it was divided then, (matrices, 1, 1).
    cut: the singular value at which f is ½ after ``growth`` steps.
    growth: the largest number of Newton's steps.
    start: the multiple of Aᵀ that they start from.
    """

    tall: Tensor
    unit: Tensor
    norm: Tensor
    cut: float
    growth: int
    start: Tensor


def _scaled(target: Tensor) -> _Scaled:
    rows, columns = target.shape[-2:]
    if settles_symbols():
        rows, columns = operator.index(rows), operator.index(columns)
    tall = (target.mT if rows < columns else target).to(_arithmetic(target))
    unit = largest_entry(tall)
    tall = tall / unit
    norm = spectral_norm(tall)
    tall = tall / norm
    cut = max(rows, columns) * torch.finfo(target.dtype).eps
    cut += _CLEARANCE * torch.finfo(tall.dtype).eps
    # From V = w Aᵀ, f = 1 − (1 − w σ²)^(2^steps), which is ½ for w σ² 2^steps = log 2.
    growth = math.ceil(math.log2(math.log(2) / cut**2))
    weight = math.log(2) / cut**2 / 2**growth
    return _Scaled(tall, unit, norm, cut, growth, weight * tall.mT)


def _arithmetic(target: Tensor) -> torch.dtype:
    """Float64, whose rounding is below every cut of float32; Apple's GPUs have none."""
    return target.dtype if target.device.type == "mps" else torch.float64


def _restored(inverse: Tensor, scaled: _Scaled, target: Tensor) -> Tensor:
    """The inverse of ``target`` from that of the scaled matrix."""
    # One after the other: their product may overflow.
    inverse = (inverse / scaled.norm / scaled.unit).to(target.dtype)
    return inverse.mT if target.shape[-2] < target.shape[-1] else inverse


def _after_steps(target: Tensor, iterations: int) -> Tensor:
    """The inverse after ``iterations`` steps, without reading anything back."""
    scaled = _scaled(target)
    a, inverse = scaled.tall, scaled.start
    growing = step_counts(a, 1).bool()
    for taken in range(iterations):
        projector = inverse @ a
        projected = projector @ inverse
        with torch.no_grad():
            growing = growing & _unfinished(scaled, inverse, projector, projected)
        settled = _settled(projector, projected)
        if taken < scaled.growth:
            inverse = torch.where(growing[:, None, None], 2 * inverse - projected, settled)
        else:
            inverse = settled
    # Newton's steps double what rounding leaves outside the range of Aᵀ; V A V is rid of it.
    return _restored(inverse @ a @ inverse, scaled, target)


def _converged(target: Tensor) -> tuple[Tensor, Tensor]:
    scaled = _scaled(target)
    inverse, grown = _grow(scaled)
    inverse, settled = _settle(scaled.tall, inverse)
    return _restored(inverse, scaled, target), grown + settled


def _grow(scaled: _Scaled) -> tuple[Tensor, Tensor]:
    """Newton's steps until every singular value above the cut has f > ½."""
    a, inverse = scaled.tall, scaled.start
    taken, growing = step_counts(a, 0), step_counts(a, 1).bool()
    for _ in range(scaled.growth):
        projector = inverse @ a
        projected = projector @ inverse
        growing = growing & _unfinished(scaled, inverse, projector, projected)
        if not growing.any():
            break
        inverse = torch.where(growing[:, None, None], 2 * inverse - projected, inverse)
        taken = taken + growing
    return inverse, taken


def _unfinished(scaled: _Scaled, inverse: Tensor, projector: Tensor, projected: Tensor) -> Tensor:
    """Whether a singular value above the cut may still have f < ½.

    None has where V A is close to I, nor where A − A V A, which holds σ (1 − f), is below a quarter
    of the cut. In float64 the rounding of these products may hide that. Then a matrix is finished
    when A − A V A has sunk into the rounding while V is at rest: V moves by f (1 − f) / σ, which
    shows a small singular value early.
    """
    a = scaled.tall
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    missing = frobenius(a - a @ projector)
    rounding = torch.finfo(a.dtype).eps * frobenius(inverse) * frobenius(a)
    moving = relative(inverse - projected, inverse) > rounding.sqrt()
    return (
        (frobenius(identity - projector) > _NEAR_IDENTITY)
        & (missing > scaled.cut / 4)
        & ((missing > _UNITS_OF_ROUNDING * rounding) | moving)
    )


def _settle(a: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Steps that send every f to 0 or 1, until V no longer moves."""
    eps = torch.finfo(a.dtype).eps
    taken, moving = step_counts(a, 0), step_counts(a, 1).bool()
    for _ in range(_MOST_SETTLING_STEPS):
        projector = inverse @ a
        settled = _settled(projector, projector @ inverse)
        movement = relative(settled - inverse, inverse)
        rounding = eps * frobenius(inverse) * frobenius(a)
        inverse = torch.where(moving[:, None, None], settled, inverse)
        taken = taken + moving
        # The step after a movement by √ε moves by ε.
        moving = moving & (movement > math.sqrt(eps) + rounding)
        if not moving.any():
            break
    return inverse, taken


def _settled(projector: Tensor, projected: Tensor) -> Tensor:
    """3 V A V − 2 V A V A V, from V A and V A V."""
    return 3 * projected - 2 * projector @ projected
