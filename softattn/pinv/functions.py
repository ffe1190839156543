"""Moore–Penrose pseudo-inverses by Newton's iteration: matrix products only."""

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from softattn import triton as operators
from softattn.backends.selection import newton_runs_on_triton
from softattn.common.compiler import apply, settles_symbols
from softattn.common.precision import compute_dtype, without_autocast
from softattn.common.validation import IMPLEMENTATIONS, check_choice, check_floating

# Newton doubles the share of a singular value σ/‖A‖ in each of 2 log₂(‖A‖/σ) steps; half again as
# many for norms that overestimate.
_TRANSPOSE_CAP_PER_DIGIT = 3

# Below it float32 cannot tell A + ridge · I from A.
_LEAST_RIDGE = 1e-12

METHODS = ("transpose", "soft", "soft_norm_official", "minimax")


class PinvInfo(NamedTuple):
    """How far an inverse V of A got, one number for each matrix of the batch.

    residual: the larger of ‖A V A − A‖ / ‖A‖ and ‖V A V − V‖ / ‖V‖ in the Frobenius norm, the first
        two Penrose conditions, with A the matrix after its ridge; 0 for a zero matrix.
    iterations: steps taken, int64.
    """

    residual: Tensor
    iterations: Tensor


def newton_pinv(
    a: Tensor,
    *,
    method: str = "transpose",
    ridge: float = 0.0,
    iterations: int | None = None,
    impl: str = "auto",
) -> Tensor:
    """The pseudo-inverse of each matrix, by Newton's iteration V ← V (2 I − A V) and its kin.

    - ``"transpose"``: any matrix of any rank and shape. Starts at Aᵀ / (‖A‖₁ ‖A‖∞) and stops by
      the residual, matrix by matrix, which reads back from the device at every step. Given
      ``iterations`` it takes just these and reads nothing back, which ``torch.vmap`` needs.
      For condition numbers κ up to about ε^−½ (3,000 in float32, 7e7 in float64) its error is that
      of ``torch.linalg.pinv``; of the two projectors V A is right to ε κ and A V to ε κ². Smaller
      singular values are kept where the spectrum leads down to them gradually and cut off behind
      a gap, which the residual cannot tell from rank deficiency.
    - ``"minimax"``: symmetric positive definite A + ridge · I, ridge > 0, whose entries are at most
      1 as those of a Gaussian Gram matrix are (for larger ones give ``iterations``). Each step is
      scaled to be the best for the interval that is known to hold the spectrum; the number of
      steps follows from the ridge and the size alone.
    - ``"soft"``: 20 steps from α (A + ridge · I), α = 1.8 / ‖A‖₁² (SOFT, NeurIPS 2021, which has
      ridge 0.01). They do not converge on nearly singular matrices.
    - ``"soft_norm_official"``: what the authors' code does for SOFT-Norm: one α = 2 / ‖A‖₁² for the
      whole batch, halved up to ten times while ‖I − α A²‖₁ of any matrix exceeds 1.01, then 20
      steps. A matrix's result depends on the others in the batch; for the authors' checkpoints.

    The gradient of ``"transpose"`` and ``"minimax"`` is that of the pseudo-inverse itself, in
    closed form. That of the other two goes through their iterations, and so does that of all four
    where ``iterations`` is given. Both can be differentiated again, in reverse mode.

    Args:
        a: (..., rows, columns), floating point; square but for ``"transpose"`` without ridge.
        method: see above.
        ridge: ε, added to the diagonal before anything else; not negative.
        iterations: the number of steps; by default as the method says.
        impl: ``"triton"`` takes all steps of all matrices in one launch, for matrices of up to 128
            rows, in float32, by any method but ``"transpose"``; ``"eager"`` takes them by matrix
            products; ``"auto"`` takes Triton where it runs, but for gradients through the steps.

    Returns:
        (..., columns, rows) in the dtype of ``a``. The arithmetic is done in float32, or float64
        for float64.

    Raises:
        TypeError: ``a`` is not a floating-point tensor.
        ValueError: the shape does not fit the method, or an option is out of its range.
    """
    _check(method, ridge, iterations)
    return _solve(a, method, ridge, iterations, impl)[0].to(a.dtype)


def newton_pinv_ex(
    a: Tensor,
    *,
    method: str = "transpose",
    ridge: float = 0.0,
    iterations: int | None = None,
    impl: str = "auto",
) -> tuple[Tensor, PinvInfo]:
    """``newton_pinv`` and how far it got, as ``torch.linalg.inv_ex`` tells of its own.

    Returns:
        The inverse as ``newton_pinv`` gives it, and a ``PinvInfo`` of two (...) tensors, which are
        never read back from the device.
    """
    _check(method, ridge, iterations)
    inverse, steps, target = _solve(a, method, ridge, iterations, impl)
    with torch.no_grad(), without_autocast(a.device):
        unit = _largest_entry(target)
        x, v = target / unit, inverse * unit
        residual = torch.maximum(_relative(x @ v @ x - x, x), _relative(v @ x @ v - v, v))
    return inverse.to(a.dtype), PinvInfo(residual, steps)


class NewtonPinv(nn.Module):
    """``newton_pinv`` as a module; the options are the same."""

    def __init__(
        self,
        method: str = "transpose",
        ridge: float = 0.0,
        iterations: int | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        _check(method, ridge, iterations)
        check_choice("impl", impl, IMPLEMENTATIONS)
        self.method = method
        self.ridge = ridge
        self.iterations = iterations
        self.impl = impl

    def forward(self, a: Tensor) -> Tensor:
        """The pseudo-inverses (..., columns, rows) of ``a`` (..., rows, columns)."""
        return newton_pinv(
            a,
            method=self.method,
            ridge=self.ridge,
            iterations=self.iterations,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """The options that are in force."""
        iterations = "" if self.iterations is None else f", iterations={self.iterations}"
        return f"method={self.method!r}, ridge={self.ridge}{iterations}"


PAPER_RIDGE = 0.01


def resolve_pinv(
    pinv: str | Callable[[Tensor], Tensor] | None, impl: str = "auto"
) -> Callable[[Tensor], Tensor]:
    """The inverse of a Gram matrix that a layer asks for, with the paper's ridge where it has one.

    Raises:
        TypeError: not a name, a callable or None.
        ValueError: the name of no method.
    """
    if pinv is None:
        pinv = "minimax"
    if isinstance(pinv, str):
        check_choice("pinv", pinv, METHODS)
        ridge = PAPER_RIDGE if pinv in ("minimax", "soft") else 0.0
        # Methods and sizes without a kernel go by matrix products, in a layer on Triton too.
        return NewtonPinv(pinv, ridge=ridge, impl="eager" if impl == "eager" else "auto")
    if not callable(pinv) or isinstance(pinv, type):
        raise TypeError(
            "pinv must be a callable such as softattn.NewtonPinv(...), a method's name or None, "
            f"got {pinv.__name__ if isinstance(pinv, type) else type(pinv).__name__}"
        )
    return pinv


def _check(method: str, ridge: float, iterations: int | None) -> None:
    check_choice("method", method, METHODS)
    if not (isinstance(ridge, (int, float)) and 0 <= ridge < math.inf):
        raise ValueError(f"ridge must be a finite number, 0 or above, got {ridge!r}")
    if method == "minimax" and ridge < _LEAST_RIDGE:
        raise ValueError(
            f"method='minimax' needs ridge > 0, at least {_LEAST_RIDGE}, its lower bound on the "
            f"spectrum, got {ridge}: the paper's is 0.01; without one use method='transpose'"
        )
    if iterations is not None and (not isinstance(iterations, int) or iterations < 0):
        raise ValueError(f"iterations must be an int, 0 or above, or None, got {iterations!r}")


def _solve(
    a: Tensor, method: str, ridge: float, iterations: int | None, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse, the steps taken, and the matrix A + εI that was inverted."""
    check_floating("a", a)
    if a.ndim < 2:
        raise ValueError(f"a must be (..., rows, columns), got shape {tuple(a.shape)}")
    rows, columns = a.shape[-2:]
    if rows != columns and (method != "transpose" or ridge):
        raise ValueError(
            f"method={method!r} with ridge={ridge} needs square matrices, got shape "
            f"{tuple(a.shape)}; rectangular ones take method='transpose' and ridge=0"
        )
    if a.numel() == 0:
        return a.mT, torch.zeros(a.shape[:-2], dtype=torch.int64, device=a.device), a
    batch = a.shape[:-2]
    a = a.to(compute_dtype(a)).reshape(-1, rows, columns)
    target = a + ridge * torch.eye(rows, dtype=a.dtype, device=a.device) if ridge else a
    on_triton = newton_runs_on_triton(impl, a, method, iterations)
    with without_autocast(a.device):
        if method in ("transpose", "minimax"):
            solver = _transpose if method == "transpose" else partial(_minimax, on_triton=on_triton)
            if iterations is None:
                with torch.no_grad():
                    inverse, steps = solver(target, ridge, None)
                inverse = apply(_ImplicitGradient, target, inverse, method == "minimax")
            else:
                inverse, steps = solver(target, ridge, iterations)
        else:
            start = _soft_start if method == "soft" else _soft_norm_official_start
            count = 20 if iterations is None else iterations
            inverse = _newton(target, start(a, target), count, on_triton=on_triton)
            steps = _step_counts(target, count)
    return (
        inverse.view(*batch, columns, rows),
        steps.view(batch),
        target.view(*batch, rows, columns),
    )


def _step_counts(a: Tensor, count: int) -> Tensor:
    return torch.full(a.shape[:-2], count, dtype=torch.int64, device=a.device)


def _newton(
    target: Tensor,
    start: Tensor,
    steps: int,
    *,
    lower: float = 1.0,
    on_triton: bool = False,
) -> Tensor:
    """Newton's steps scaled for an interval [l, 1] that holds the spectrum of V A.

    With c the middle of the interval, x ← x (2c − x) / c² maps it onto [l (2c − l) / c², 1]: both
    ends meet at the lower one. A last factor 2 / (1 + l) centres what is left around 1. For l = 1
    it is the plain iteration V ← 2 V − V A V.
    """
    if on_triton:
        return operators.newton(target, start, lower, steps)
    inverse = start
    for _ in range(steps):
        middle = (1 + lower) / 2
        inverse = torch.baddbmm(
            inverse, inverse @ target, inverse, beta=2 / middle, alpha=-1 / middle**2
        )
        lower = _raised(lower)
    return inverse if lower == 1 else inverse * (2 / (1 + lower))


def _soft_start(a: Tensor, target: Tensor) -> Tensor:
    norm = a.abs().sum(-2).amax(-1)[..., None, None]
    return 1.8 / norm.square() * target


def _soft_norm_official_start(a: Tensor, target: Tensor) -> Tensor:
    alpha = 2 / a.abs().sum(-2).amax().square()
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    square = (a @ a).detach()
    for _ in range(10):
        distance = (identity - alpha * square).abs().sum(-2).amax()
        alpha = torch.where(distance > 1.01, alpha / 2, alpha)
    return alpha * target


def _transpose(target: Tensor, ridge: float, iterations: int | None) -> tuple[Tensor, Tensor]:
    """Newton's iteration from Aᵀ / (‖A‖₁ ‖A‖∞), on the matrix scaled to a largest entry of 1.

    The answer is W = V A V, which is V rid of what rounding has grown outside the range of Aᵀ. A
    matrix is done once ‖A − A V A‖ has sunk into the rounding of its products, ε ‖A‖ ‖V‖ / ‖V A‖
    relative to ‖A‖ in Frobenius norms, while no small singular value is still growing: V moves by
    less than half in a step and W by less than a tenth. Four more steps then use up all digits.
    """
    tiny, eps = torch.finfo(target.dtype).tiny, torch.finfo(target.dtype).eps
    unit = _largest_entry(target)
    a = target / unit
    norms = a.abs().sum(-2).amax(-1) * a.abs().sum(-1).amax(-1)
    inverse = a.mT / norms.clamp(min=tiny)[..., None, None]
    if iterations is None:
        cap = _TRANSPOSE_CAP_PER_DIGIT * -math.log2(eps) + 2 * math.log2(max(a.shape[-2:]))
        left = _step_counts(a, math.ceil(cap))
        taken = _step_counts(a, 0)
        while left.any():
            step = inverse @ a
            rounding = 2 * eps * _norm(a) * _norm(inverse) / _norm(step).clamp(min=tiny)
            projected = step @ inverse
            unfinished = (
                (_relative(a - a @ step, a) > rounding)
                | (_relative(inverse - projected, inverse) > 0.5)
                | (_relative(projected - projected @ a @ projected, projected) > 0.1)
            )
            left = torch.where(unfinished, left, left.clamp(max=4))
            active = left > 0
            inverse = torch.where(active[..., None, None], 2 * inverse - projected, inverse)
            left, taken = left - active.long(), taken + active.long()
    else:
        inverse, taken = _newton(a, inverse, iterations), _step_counts(a, iterations)
    return inverse @ a @ inverse / unit, taken


def _minimax(
    target: Tensor, ridge: float, iterations: int | None, *, on_triton: bool
) -> tuple[Tensor, Tensor]:
    """Scaled steps from I / ‖A‖∞.

    Where entries are at most 1, ‖A‖∞ is at most size + ridge: so the interval that holds the
    spectrum, and with it the number of steps, is known before anything is computed.
    """
    size = target.shape[-1]
    if settles_symbols():
        # The number of steps is settled when they are traced.
        size, ridge = operator.index(size), _settled(ridge)
    norm = target.abs().sum(-1).amax(-1)[..., None, None]
    start = torch.eye(size, dtype=target.dtype, device=target.device) / norm
    lower = ridge / (size + ridge)
    if iterations is None:
        iterations = _minimax_iterations(lower, torch.finfo(target.dtype).eps)
    inverse = _newton(target, start, iterations, lower=lower, on_triton=on_triton)
    return inverse, _step_counts(target, iterations)


def _settled(number: float) -> float:
    """The number itself where a compiler, asked for dynamic sizes, has put a symbol for it."""
    from torch.fx.experimental.symbolic_shapes import guard_scalar

    return guard_scalar(number)


def _raised(lower: float) -> float:
    """The lower end of the interval after a step of ``_newton``."""
    middle = (1 + lower) / 2
    return min(lower * (2 * middle - lower) / middle**2, 1.0)


def _minimax_iterations(lower: float, tolerance: float) -> int:
    iterations = 0
    while (1 - lower) / (1 + lower) > tolerance:
        lower = _raised(lower)
        iterations += 1
    return iterations


def _largest_entry(a: Tensor) -> Tensor:
    """The largest |entry| of each matrix, 1 where it is 0 or there is none: (..., 1, 1)."""
    if a.numel() == 0:
        return torch.ones((*a.shape[:-2], 1, 1), dtype=a.dtype, device=a.device)
    largest = a.abs().amax((-2, -1), keepdim=True)
    return torch.where(largest > 0, largest, 1)


def _norm(a: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(a)


def _relative(difference: Tensor, whole: Tensor) -> Tensor:
    """‖difference‖ / ‖whole‖, 0 where the difference is 0."""
    distance = _norm(difference)
    return torch.where(distance == 0, 0, distance / _norm(whole))


class _ImplicitGradient(torch.autograd.Function):
    """Gives an inverse P of A the gradient that a pseudo-inverse has.

    dA = −Pᵀ G Pᵀ + (I − A P) Gᵀ P Pᵀ + Pᵀ P Gᵀ (I − P A), whose last two terms vanish where A has
    full rank (Golub and Pereyra, 1973).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, inverse: Tensor, full_rank: bool) -> Tensor:
        return inverse.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        a, _, ctx.full_rank = inputs
        ctx.save_for_backward(a, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        a, p = ctx.saved_tensors
        with without_autocast(grad.device):
            gradient = -p.mT @ grad @ p.mT
            if not ctx.full_rank:
                left = grad.mT @ p @ p.mT
                right = p.mT @ p @ grad.mT
                gradient = gradient + left - a @ p @ left + right - right @ p @ a
        return gradient, None, None
