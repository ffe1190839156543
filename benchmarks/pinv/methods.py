"""The inverses that ``benchmarks.pinv`` compares, all of the same matrix A + ridge · I."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from softattn import newton_pinv, newton_pinv_ex

NEWTON = ("minimax", "transpose", "soft", "soft_norm_official")


def shifted(a: Tensor, ridge: float) -> Tensor:
    """A + ridge · I."""
    return a + ridge * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def newton(method: str, a: Tensor, ridge: float, iterations: int | None = None) -> Tensor:
    """The Newton inverse of A + ridge · I by one of ``NEWTON``."""
    return newton_pinv(a, method=method, ridge=ridge, iterations=iterations)


def steps_taken(method: str, a: Tensor, ridge: float) -> int:
    """The most steps that a Newton method takes by default on any of the matrices."""
    _, info = newton_pinv_ex(a, method=method, ridge=ridge)
    return int(info.iterations.max())


# The inverse of A + ridge · I from A and the ridge, by name.
METHODS: dict[str, Callable[[Tensor, float], Tensor]] = {
    **{name: partial(newton, name) for name in NEWTON},
    "linalg.pinv": lambda a, ridge: torch.linalg.pinv(shifted(a, ridge)),
    "linalg.inv": lambda a, ridge: torch.linalg.inv(shifted(a, ridge)),
    "Cholesky": lambda a, ridge: torch.cholesky_inverse(torch.linalg.cholesky(shifted(a, ridge))),
}
