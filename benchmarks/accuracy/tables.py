"""The tables of ``benchmarks.accuracy``: a column for each number of landmarks."""

from collections.abc import Callable, Iterable, Sequence

from rich.table import Table

from benchmarks.accuracy.comparisons import COMPARISONS, Error
from benchmarks.common.quantities import percent_text
from benchmarks.common.report import new_table


def sampler_table(errors: Sequence[Error]) -> Table:
    """Errors by input and by the way to choose landmarks."""
    tokens = " or ".join(f"{side**2:,}" for side in sorted({error.side for error in errors}))
    table = _error_table(f'error of "token", {tokens} tokens', ("input", "landmarks"), errors)
    for key, by_landmarks in _grouped(errors, lambda e: (e.input, e.sampler)):
        table.add_row(*key, *_texts(by_landmarks))
    return table


def size_table(errors: Sequence[Error], target: float) -> Table:
    """Errors by input and by size of the map, and the least m that reaches the target."""
    table = _error_table('error of "token", average pooling', ("input", "map"), errors)
    table.add_column(f"m for {percent_text(target)}", justify="right")
    for key, by_landmarks in _grouped(errors, lambda e: (e.input, f"{e.side} × {e.side}")):
        m = least_landmarks(by_landmarks, target)
        table.add_row(*key, *_texts(by_landmarks), "more" if m is None else str(m))
    return table


def sharpness_table(errors: Sequence[Error]) -> Table:
    """Errors by comparison and by the sharpness of the kernel."""
    inputs = ", ".join(sorted({f"{error.input} of {error.side**2:,} tokens" for error in errors}))
    table = _error_table(f"error, average pooling, {inputs}", ("comparison", "queries"), errors)
    for (name, factor), by_landmarks in _grouped(
        errors, lambda e: (e.comparison, f"× {e.sharpness:g}")
    ):
        table.add_row(COMPARISONS[name].title, factor, *_texts(by_landmarks))
    return table


def least_landmarks(by_landmarks: dict[int, float], target: float) -> int | None:
    """The least number of landmarks that was measured and whose error is at most the target."""
    return min((m for m, error in by_landmarks.items() if error <= target), default=None)


def _error_table(title: str, names: tuple[str, str], errors: Sequence[Error]) -> Table:
    numbers = sorted({error.landmarks for error in errors})
    return new_table(title, *names, *(f"m = {m}" for m in numbers), left=2)


def _grouped(
    errors: Sequence[Error], key: Callable[[Error], tuple[str, str]]
) -> Iterable[tuple[tuple[str, str], dict[int, float]]]:
    """Errors by number of landmarks, for each key."""
    groups: dict[tuple[str, str], dict[int, float]] = {}
    for error in errors:
        groups.setdefault(key(error), {})[error.landmarks] = error.error
    return groups.items()


def _texts(by_landmarks: dict[int, float]) -> list[str]:
    return [percent_text(by_landmarks[m]) for m in sorted(by_landmarks)]
