"""Moore–Penrose pseudo-inverses by Newton's iteration: matrix products only."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from softattn.backends.selection import newton_runs_on_triton
from softattn.common.precision import compute_dtype, without_autocast
from softattn.common.validation import IMPLEMENTATIONS, check_choice, check_floating
from softattn.pinv.method import Method, Problem
from softattn.pinv.minimax import Minimax
from softattn.pinv.norms import largest_entry, relative
from softattn.pinv.published import Soft, SoftNormOfficial
from softattn.pinv.transpose import Transpose

_METHODS: dict[str, Method] = {
    method.name: method for method in (Transpose(), Soft(), SoftNormOfficial(), Minimax())
}
METHODS = tuple(_METHODS)


class PinvInfo(NamedTuple):
    """Convergence diagnostics of an inverse V of A, one number for each matrix of the batch.

    Attributes:
        residual: the larger of ‖A V A − A‖ / ‖A‖ and ‖V A V − V‖ / ‖V‖ in the Frobenius norm, the
            first two Penrose conditions, with A the matrix after its ridge; 0 for a zero matrix.
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

    - ``"transpose"``: any matrix of any rank and shape. It keeps the singular values σ above a cut
      and drops those below, as ``torch.linalg.pinv`` does at that tolerance. The cut is
      (max(rows, columns) ε + 256 ε₆₄) ‖A‖₂, with ε = ``torch.finfo(dtype).eps``, float32's for half
      precision, and ε₆₄ float64's; ‖A‖₂ is overestimated by a few percent. A singular value within
      rounding of the cut may enter with a factor between 0 and 1/σ; the residual shows it. The
      output is finite for finite matrices, unless it is too large for its dtype.
    - ``"minimax"``: symmetric positive definite A + ridge · I, ridge > 0, whose entries are at most
      1 as those of a Gaussian Gram matrix are (for larger ones give ``iterations``). Each step is
      scaled to be the best for the interval that is known to hold the spectrum; the number of
      steps follows from the ridge and the size alone.
    - ``"soft"``: 20 steps from α (A + ridge · I), α = 1.8 / ‖A‖₁² (SOFT, NeurIPS 2021, which has
      ridge 0.01). They do not converge on nearly singular matrices.
    - ``"soft_norm_official"``: what the authors' code does for SOFT-Norm: one α = 2 / ‖A‖₁² for the
      whole batch, halved up to ten times while ‖I − α A²‖₁ of any matrix exceeds 1.01, then 20
      steps. A matrix's result depends on the others in the batch; for the authors' checkpoints.

    The arithmetic of ``"transpose"`` is in float64, so that float32 outputs are right to rounding.
    Float64 outputs have a relative error of about ε₆₄ κ, with κ the ratio of ‖A‖₂ to the smallest
    singular value that is kept, or to the cut if one is dropped close to it. The smaller of A V and
    V A is symmetric to ε₆₄ κ, the larger to ε₆₄ κ². In float64 a matrix without full rank also
    loses singular values below 8 ε₆₄ ‖A‖_F ‖V‖_F ‖A‖₂ that lie behind a wide gap. Each matrix stops
    by its own residual, which is read back from the device at every step. Given ``iterations`` it
    takes just these and reads nothing back, which ``torch.vmap`` needs; 110 suffice for every
    matrix.

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
        (..., columns, rows) in the dtype of ``a``. The arithmetic of all methods but
        ``"transpose"`` is in float32, or float64 for float64.

    Raises:
        TypeError: ``a`` is not a floating-point tensor.
        ValueError: the shape does not fit the method, or an option is out of its range.
    """
    _check(method, ridge, iterations)
    return _solve(a, _METHODS[method], ridge, iterations, impl)[0].to(a.dtype)


def newton_pinv_ex(
    a: Tensor,
    *,
    method: str = "transpose",
    ridge: float = 0.0,
    iterations: int | None = None,
    impl: str = "auto",
) -> tuple[Tensor, PinvInfo]:
    """``newton_pinv`` with diagnostics of its convergence, as ``torch.linalg.inv_ex`` has them.

    Returns:
        The inverse as ``newton_pinv`` gives it, and a ``PinvInfo`` of two (...) tensors, which are
        never read back from the device.
    """
    _check(method, ridge, iterations)
    inverse, steps, target = _solve(a, _METHODS[method], ridge, iterations, impl)
    with torch.no_grad(), without_autocast(a.device):
        unit = largest_entry(target)
        x, v = target / unit, inverse * unit
        residual = torch.maximum(relative(x @ v @ x - x, x), relative(v @ x @ v - v, v))
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
        ridge = _METHODS[pinv].layer_ridge
        # Methods and sizes without a kernel go by matrix products, in a layer on Triton too.
        return NewtonPinv(pinv, ridge=ridge, impl="eager" if impl == "eager" else "auto")
    if not callable(pinv) or isinstance(pinv, type):
        raise TypeError(
            "pinv must be a callable such as softattn.NewtonPinv(...), a method's name or None, "
            f"got {pinv.__name__ if isinstance(pinv, type) else type(pinv).__name__}"
        )
    return pinv


def ridge_of(pinv: Callable[[Tensor], Tensor], impl: str) -> float | None:
    """ε where ``pinv`` gives (A + ε I)⁻¹ of a Gaussian Gram matrix, and need not be called for it.

    Args:
        pinv: the inverse of a call.
        impl: what the call runs on, ``"eager"`` or ``"triton"``.

    Returns:
        None where ``pinv`` gives something else, and where it must be called: because it is of a
        subclass, has hooks, or asks for another implementation.
    """
    if type(pinv) is not NewtonPinv or "forward" in vars(pinv) or _has_hooks(pinv):
        return None
    converges = pinv.method == "minimax" and pinv.iterations is None
    return pinv.ridge if converges and pinv.impl in ("auto", impl) else None


def _has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than calling its ``forward``."""
    # torch's own question for global hooks is younger than the oldest torch that is declared.
    kinds = ("forward", "forward_pre", "backward", "backward_pre")
    return any(
        getattr(module, f"_{kind}_hooks") or getattr(nn.modules.module, f"_global_{kind}_hooks")
        for kind in kinds
    )


def _check(method: str, ridge: float, iterations: int | None) -> None:
    check_choice("method", method, METHODS)
    if not (isinstance(ridge, (int, float)) and 0 <= ridge < math.inf):
        raise ValueError(f"ridge must be a finite number, 0 or above, got {ridge!r}")
    _METHODS[method].check(ridge)
    if iterations is not None and (not isinstance(iterations, int) or iterations < 0):
        raise ValueError(f"iterations must be an int, 0 or above, or None, got {iterations!r}")


def _solve(
    a: Tensor, method: Method, ridge: float, iterations: int | None, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse, the steps taken, and the matrix A + εI that was inverted."""
    _check_matrices(a, method, ridge)
    *batch, rows, columns = a.shape
    if a.numel() == 0:
        return a.mT, torch.zeros(batch, dtype=torch.int64, device=a.device), a
    a = a.to(compute_dtype(a)).reshape(-1, rows, columns)
    target = a + ridge * torch.eye(rows, dtype=a.dtype, device=a.device) if ridge else a
    on_triton = newton_runs_on_triton(
        impl,
        a,
        iterations=iterations,
        through_steps=iterations is not None or not method.converges,
        obstacle=method.obstacle_to_triton,
    )
    with without_autocast(a.device):
        inverse, steps = method.solve(Problem(a, target, ridge, on_triton), iterations)
    return (
        inverse.view(*batch, columns, rows),
        steps.view(batch),
        target.view(*batch, rows, columns),
    )


def _check_matrices(a: Tensor, method: Method, ridge: float) -> None:
    check_floating("a", a)
    if a.ndim < 2:
        raise ValueError(f"a must be (..., rows, columns), got shape {tuple(a.shape)}")
    if a.shape[-2] != a.shape[-1] and (ridge or not method.takes_rectangular):
        raise ValueError(
            f"method={method.name!r} with ridge={ridge} needs square matrices, got shape "
            f"{tuple(a.shape)}; rectangular ones take method='transpose' and ridge=0"
        )
