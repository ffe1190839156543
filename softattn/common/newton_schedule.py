"""The coefficients of Newton's steps, which are scaled for an interval that holds the spectrum.

With c = (1 + l) / 2 the middle of [l, 1], a step V ← (2 c V − V A V) / c² maps a spectrum of V A
within [l, 1] into [l (2 c − l) / c², 1]. Both ends meet at the lower one, and no other step of this
form lifts it as far. l = 1 is the plain iteration V ← 2 V − V A V.
"""


def newton_schedule(lower: float, steps: int) -> tuple[list[tuple[float, float]], float]:
    """What each step takes of V and of V A V, and the factor that follows the last step.

    Args:
        lower: l, above 0 and at most 1.
        steps: how many.

    Returns:
        For each step (keep, subtract) of V ← keep · V − subtract · V A V, and the factor
        2 / (1 + l) that centres the last interval around 1.
    """
    coefficients = []
    for _ in range(steps):
        middle = (1 + lower) / 2
        coefficients.append((2 / middle, 1 / middle**2))
        lower = _raised(lower)
    return coefficients, 2 / (1 + lower)


def steps_until(lower: float, tolerance: float) -> int:
    """The number of steps after which the spectrum of V A is within ``tolerance`` of 1."""
    steps = 0
    while (1 - lower) / (1 + lower) > tolerance:
        lower = _raised(lower)
        steps += 1
    return steps


def _raised(lower: float) -> float:
    """The lower end of the interval after a step."""
    middle = (1 + lower) / 2
    return min(lower * (2 * middle - lower) / middle**2, 1.0)
