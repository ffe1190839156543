"""Writes the results of a run into the pages of the documentation."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common.calls import MODES
from benchmarks.common.quantities import percent_text, seconds_text

BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
_BYTES = 2
# The cell of a call, empty where it was not measured.
Cell = Callable[[str], dict[str, Any]]
_HEADINGS = (
    *("pairs × tokens", ""),
    *("none", "token", "softmax", "layer", "flash", "cuDNN", "flash / token"),
    *("token, of the limit", "token, no graph", "token, host"),
)
_OTHER_CALLS = ("near field", "128 landmarks", "float32")


def write_pages(folder: Path, docs: Path) -> list[Path]:
    """Puts the table of a run's times into ``performance.md`` and its JSON beside it.

    Args:
        folder: the ``--out`` of the run.
        docs: the folder of the pages.

    Returns:
        What was written.

    Raises:
        ValueError: the run has no times, or the page no marks.
    """
    times = folder / "times.json"
    if not times.exists():
        raise ValueError(f"{folder} has no times.json: its step 'times' has not run")
    machine = json.loads((folder / "machine.json").read_text())
    cells = json.loads(times.read_text())
    table = times_table(cells, machine["copy_bytes_per_second"])
    environment = machine["environment"]
    text = (
        f"{environment['device_name']}, {environment['dtype']}, PyTorch {environment['torch']}, "
        f"Triton {environment['triton']}, ptxas {machine['ptxas']}, copy bandwidth "
        f"{machine['copy_bytes_per_second'] / 1e12:.2f} TB/s.\n\n{table}\n\n{others_table(cells)}"
    )
    page = docs / "performance.md"
    page.write_text(_between_marks(page, text))
    name = environment["device_name"].lower().replace(" ", "_")
    measurements = docs / "measurements" / f"gpu_{name}.json"
    measurements.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(times, measurements)
    return [page, measurements]


def times_table(cells: list[dict[str, Any]], bandwidth: float) -> str:
    """A table in Markdown, one row for each size and mode; times are those of graphs."""

    def row(cell: Cell) -> list[str]:
        token, flash = cell("token"), cell("sdpa flash")
        return [
            *(_time(cell(call)) for call in ("none", "token", "softmax", "layer")),
            *(_time(flash), _time(cell("sdpa cudnn")), _ratio(flash, token)),
            _of_the_limit(token, bandwidth),
            *(_time(token, which) for which in ("eager_seconds", "host_seconds")),
        ]

    return _table(_HEADINGS, cells, row)


def others_table(cells: list[dict[str, Any]]) -> str:
    """The same for other calls of ``"token"``, and their times over its own."""

    def row(cell: Cell) -> list[str]:
        token = cell("token")
        times = [_time(cell(call)) for call in ("token", *_OTHER_CALLS)]
        return times + [_ratio(cell(call), token) for call in _OTHER_CALLS]

    ratios = (f"{call} / token" for call in _OTHER_CALLS)
    return _table(("pairs × tokens", "", "token", *_OTHER_CALLS, *ratios), cells, row)


def _table(
    headings: tuple[str, ...], cells: list[dict[str, Any]], columns: Callable[[Cell], list[str]]
) -> str:
    by_place = {(cell["size"], cell["mode"], cell["call"]): cell for cell in cells}
    lines = [f"| {' | '.join(headings)} |", "|---|---|" + "---:|" * (len(headings) - 2)]
    for size in dict.fromkeys(cell["size"] for cell in cells):
        for mode in MODES:

            def cell(call: str, size: str = size, mode: str = mode) -> dict[str, Any]:
                return by_place.get((size, mode, call), {})

            name = mode.replace("forward+backward", "with backward")
            lines.append(f"| {' | '.join([_size(size), name, *columns(cell)])} |")
    return "\n".join(lines)


def _size(size: str) -> str:
    batch, heads, n = map(int, size.split("x"))
    return f"{batch * heads} × {n:,}"


def _time(cell: dict[str, Any], which: str = "graph_seconds") -> str:
    return seconds_text(cell[which]) if which in cell else ""


def _of_the_limit(cell: dict[str, Any], bandwidth: float) -> str:
    if "graph_seconds" not in cell or "elements" not in cell:
        return ""
    return percent_text(_BYTES * cell["elements"] / bandwidth / cell["graph_seconds"])


def _ratio(numerator: dict[str, Any], denominator: dict[str, Any]) -> str:
    if "graph_seconds" not in numerator or "graph_seconds" not in denominator:
        return ""
    ratio = numerator["graph_seconds"] / denominator["graph_seconds"]
    # Two digits, without an exponent.
    return f"{float(f'{ratio:.2g}'):g}"


def _between_marks(page: Path, text: str) -> str:
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} must hold {BEGIN} and after it {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"
