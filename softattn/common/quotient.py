"""The quotient of ``normalization="token"``: its diagonal and its denominator."""

from torch import Tensor

# Smaller denominators are replaced by this.
DENOMINATOR_FLOOR = 1e-3


def restored_diagonal(approximated: Tensor) -> Tensor:
    """What the approximated diagonal P_i A⁺ P_iᵀ lacks of the exact one, which is 1.

    It is 0 to 1 but for rounding, which must not grow where tokens are far apart.
    """
    return (1 - approximated).clamp(0, 1)


def floored(denominator: Tensor) -> Tensor:
    """The denominator, at least ``DENOMINATOR_FLOOR``."""
    return denominator.clamp(min=DENOMINATOR_FLOOR)
