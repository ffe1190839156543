"""Moore–Penrose pseudo-inverses by Newton's iteration: matrix products only."""

from softattn.pinv.functions import (
    METHODS,
    PAPER_RIDGE,
    NewtonPinv,
    PinvInfo,
    newton_pinv,
    newton_pinv_ex,
    resolve_pinv,
)

__all__ = [
    "METHODS",
    "PAPER_RIDGE",
    "NewtonPinv",
    "PinvInfo",
    "newton_pinv",
    "newton_pinv_ex",
    "resolve_pinv",
]
