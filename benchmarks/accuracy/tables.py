"""The tables of ``benchmarks.accuracy``: a column for each number of landmarks."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from rich.table import Table

from benchmarks.accuracy.comparisons import COMPARISONS, TO_SOFTMAX, Error
from benchmarks.common.quantities import percent_text, three_digits
from benchmarks.common.report import new_table

Key = TypeVar("Key", bound=tuple[str | float, ...])


def sampler_table(errors: Sequence[Error]) -> Table:
    """Errors by input and by the way to choose landmarks."""
    tokens = " or ".join(f"{side**2:,}" for side in sorted({error.side for error in errors}))
    table = _error_table(f'error of "token", {tokens} tokens', ("input", "landmarks"), errors)
    for key, by_landmarks in _grouped(errors, lambda e: (e.input, e.sampler)).items():
        table.add_row(*key, *_texts(by_landmarks))
    return table


def size_table(errors: Sequence[Error], target: float) -> Table:
    """Errors by input and by size of the map, and the least m that reaches the target."""
    table = _error_table('error of "token", average pooling', ("input", "map"), errors)
    table.add_column(f"m for {percent_text(target)}", justify="right")
    for key, by_landmarks in _grouped(errors, lambda e: (e.input, f"{e.side} × {e.side}")).items():
        m = least_landmarks(by_landmarks, target)
        table.add_row(*key, *_texts(by_landmarks), "more" if m is None else str(m))
    return table


def sharpness_table(errors: Sequence[Error]) -> Table:
    """Errors by comparison and by the sharpness of the kernel."""
    inputs = ", ".join(sorted({f"{error.input} of {error.side**2:,} tokens" for error in errors}))
    table = _error_table(f"error, average pooling, {inputs}", ("comparison", "queries"), errors)
    for (name, factor), by_landmarks in _grouped(
        errors, lambda e: (e.comparison, f"× {e.sharpness:g}")
    ).items():
        table.add_row(COMPARISONS[name].title, factor, *_texts(by_landmarks))
    return table


def softmax_table(errors: Sequence[Error]) -> Table:
    """Errors against softmax attention by input, sharpness and landmarks."""
    tokens = " or ".join(f"{side**2:,}" for side in sorted({error.side for error in errors}))
    names = ("input", "queries", "log w range", "landmarks", "comparison")
    table = _error_table(f"error against softmax, {tokens} tokens", names, errors)
    groups = _grouped(errors, lambda e: (e.input, e.sharpness, e.sampler, e.comparison))
    ranges = {(e.input, e.sharpness): e.log_weight_range for e in errors}
    for (name, sharpness, sampler, comparison), by_landmarks in groups.items():
        spread = three_digits(ranges[name, sharpness])
        title = COMPARISONS[comparison].title
        table.add_row(name, f"× {sharpness:g}", spread, sampler, title, *_texts(by_landmarks))
    return table


def softmax_aims_table(errors: Sequence[Error]) -> Table:
    """How often "softmax" is no farther from softmax than "token", and under 5 %."""
    table = new_table(
        '"softmax" against softmax',
        *("input", "landmarks", "cases", 'no farther than "token"', 'largest ratio to "token"'),
        *("range under 8", "of these under 5 %", "largest error of these"),
        left=2,
    )
    pairs = softmax_pairs(errors)
    for group in dict.fromkeys((softmax.input, softmax.sampler) for softmax, _ in pairs):
        mine = [(s, t) for s, t in pairs if (s.input, s.sampler) == group]
        narrow = [softmax.error for softmax, _ in mine if softmax.log_weight_range < 8]
        table.add_row(
            *group,
            str(len(mine)),
            str(sum(softmax.error <= token.error for softmax, token in mine)),
            f"{max(softmax.error / token.error for softmax, token in mine):.3g}",
            str(len(narrow)),
            str(sum(error < 0.05 for error in narrow)),
            percent_text(max(narrow)) if narrow else "",
        )
    return table


def softmax_pairs(errors: Sequence[Error]) -> list[tuple[Error, Error]]:
    """The errors of "softmax" and of "token" against softmax on the same tokens and landmarks."""
    places: dict[tuple[str, float, str, int], dict[str, Error]] = {}
    for e in errors:
        place = places.setdefault((e.input, e.sharpness, e.sampler, e.landmarks), {})
        place[e.comparison] = e
    return [
        (place[TO_SOFTMAX[0]], place[TO_SOFTMAX[1]])
        for place in places.values()
        if len(place) == len(TO_SOFTMAX)
    ]


def least_landmarks(by_landmarks: dict[int, float], target: float) -> int | None:
    """The least number of landmarks that was measured and whose error is at most the target."""
    return min((m for m, error in by_landmarks.items() if error <= target), default=None)


def _error_table(title: str, names: tuple[str, ...], errors: Sequence[Error]) -> Table:
    numbers = sorted({error.landmarks for error in errors})
    return new_table(title, *names, *(f"m = {m}" for m in numbers), left=len(names))


def _grouped(errors: Sequence[Error], key: Callable[[Error], Key]) -> dict[Key, dict[int, float]]:
    """Errors by number of landmarks, for each key."""
    groups: dict[Key, dict[int, float]] = {}
    for error in errors:
        groups.setdefault(key(error), {})[error.landmarks] = error.error
    return groups


def _texts(by_landmarks: dict[int, float]) -> list[str]:
    return [percent_text(by_landmarks[m]) for m in sorted(by_landmarks)]
