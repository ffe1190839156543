"""Numbers with their units, as tables print them."""


def seconds_text(seconds: float) -> str:
    """Three digits of seconds, milliseconds or microseconds."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{three_digits(seconds / size)} {unit}"
    return f"{three_digits(seconds / 1e-6)} µs"


def bytes_text(count: float) -> str:
    """Three digits of GiB, MiB or KiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{three_digits(count / size)} {unit}"
    return f"{three_digits(count / 2**10)} KiB"


def three_digits(number: float) -> str:
    """Three digits of a number, all before the point where there are more."""
    return f"{number:,.0f}" if number >= 999.5 else f"{number:.3g}"


def error_text(error: float) -> str:
    """A relative error to two digits."""
    return f"{error:.1e}"
