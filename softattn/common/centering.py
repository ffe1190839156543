"""A point near the tokens, to measure distances from.

The kernel does not change when all tokens move, but distances by products lose fewer digits near
the origin.
"""

from torch import Tensor

_MEDIAN_TOKENS = 8


def median_token(tokens: Tensor) -> Tensor:
    """The median of each feature over at most about 16 of the tokens, which outliers do not move.

    Args:
        tokens: (..., n, d).

    Returns:
        (..., 1, d), zeros where there are no tokens.
    """
    n = tokens.shape[-2]
    if n == 0:
        return tokens.new_zeros(*tokens.shape[:-2], 1, tokens.shape[-1])
    some = tokens[..., :: max(n // _MEDIAN_TOKENS, 1), :]
    middle = some.shape[-2] // 2
    return some.sort(-2).values[..., middle : middle + 1, :]
