"""Moore–Penrose pseudo-inverses by Newton's iteration: matrix products only."""

from softattn.pinv.functions import (
    METHODS,
    NewtonPinv,
    PinvInfo,
    newton_pinv,
    newton_pinv_ex,
    resolve_pinv,
    ridge_of,
)

__all__ = [
    "METHODS",
    "NewtonPinv",
    "PinvInfo",
    "newton_pinv",
    "newton_pinv_ex",
    "resolve_pinv",
    "ridge_of",
]
