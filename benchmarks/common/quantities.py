"""Numbers with their units, as tables print them."""


def seconds_text(seconds: float) -> str:
    """Three digits of seconds, milliseconds or microseconds."""
    return _with_unit(seconds, {"s": 1.0, "ms": 1e-3, "µs": 1e-6})


def bytes_text(count: float) -> str:
    """Three digits of GiB, MiB or KiB."""
    return _with_unit(count, {"GiB": 2.0**30, "MiB": 2.0**20, "KiB": 2.0**10})


def percent_text(fraction: float) -> str:
    """Two digits of a fraction in percent."""
    return f"{100 * fraction:.2g} %" if fraction < 0.995 else f"{100 * fraction:,.0f} %"


def three_digits(number: float) -> str:
    """Three digits of a number, or all before the point where there are more."""
    return f"{number:,.0f}" if number >= 999.5 else f"{number:.3g}"


def _with_unit(number: float, units: dict[str, float]) -> str:
    """The number in the largest unit that does not exceed it, or in the last one."""
    unit = next((unit for unit, size in units.items() if number >= size), list(units)[-1])
    return f"{three_digits(number / units[unit])} {unit}"
