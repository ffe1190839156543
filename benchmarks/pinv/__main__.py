"""Error, steps and time of the Newton inverses of softattn, beside torch.linalg.

All invert the same batch of A + ridge · I, where A are Gaussian Gram matrices of landmarks drawn
from N(0, spread²): a small spread makes the spectrum collapse. Errors are relative, in the
Frobenius norm, against torch.linalg.pinv in float64. Times are for the whole batch of --matrices.
On CUDA torch.linalg.inv, the Cholesky factorisation and "transpose" read back from the device.
Ctrl-C keeps the finished spreads.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.table import Table

from benchmarks.common.arguments import (
    DTYPES,
    add_timing_options,
    common_parser,
    parse,
    positive_float,
    positive_int,
)
from benchmarks.common.progress import counted_steps
from benchmarks.common.quantities import seconds_text, three_digits
from benchmarks.common.report import Report, new_table
from benchmarks.pinv.figure import pinv_panels
from benchmarks.pinv.measurements import Spread, gram_matrices, measure_spread
from benchmarks.pinv.methods import METHODS

SPREADS = (3.0, 1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.01)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the tables, and writes the JSON file and the figures."""
    args = parse(_parser(), argv)
    report = Report.of("pinv", args, argv)
    spreads: list[Spread] = []
    total = len(args.spreads) * len(METHODS)
    with counted_steps(report.console, "pinv", total) as steps:
        for spread in args.spreads:
            steps.describe(f"spread {spread:g}")
            a = gram_matrices(
                spread,
                matrices=args.matrices,
                size=args.size,
                features=args.features,
                dtype=DTYPES[args.dtype],
                device=args.device,
            )
            spreads.append(
                measure_spread(
                    spread,
                    a,
                    args.ridge,
                    max_steps=args.max_steps,
                    rounds=args.rounds,
                    seconds=args.seconds_per_cell,
                    done=steps.advance,
                )
            )
    if not spreads:
        report.console.print("interrupted before the first spread was finished; wrote nothing")
        return
    panels = pinv_panels(spreads)
    report.finish(
        _tables(spreads),
        {"spreads": [_spread_json(spread) for spread in spreads]},
        interrupted=steps.interrupted,
        panels=panels,
        together=list(panels),
    )


def _parser() -> argparse.ArgumentParser:
    parser = common_parser(__doc__)
    add = parser.add_argument
    add("--matrices", type=positive_int, default=64, help="in the batch")
    add("--size", type=positive_int, default=49, help="rows of a matrix")
    add("--features", type=positive_int, default=32, help="of a landmark")
    add("--ridge", type=positive_float, default=0.01, help="added to the diagonal")
    add(
        "--spreads",
        type=positive_float,
        nargs="+",
        default=list(SPREADS),
        help="standard deviations of the landmarks",
    )
    add("--max-steps", type=positive_int, default=40, help="where the curves over steps end")
    add_timing_options(parser, rounds=7, seconds=3.0)
    return parser


def _tables(spreads: list[Spread]) -> Iterator[Table]:
    """Errors, then times and steps, a column for each method."""
    titles = ("worst relative error over the batch", "time for the batch, and Newton steps")
    errors, times = (new_table(title, "spread", "condition", *METHODS, left=0) for title in titles)
    for spread in spreads:
        row = (f"{spread.spread:g}", three_digits(spread.condition))
        errors.add_row(*row, *(f"{spread.errors[name].worst:.1e}" for name in METHODS))
        times.add_row(*row, *(_time_text(spread, name) for name in METHODS))
    yield errors
    yield times


def _time_text(spread: Spread, name: str) -> str:
    text = seconds_text(spread.timings[name].median)
    return f"{text} [dim]{spread.steps[name]}[/]" if name in spread.steps else text


def _spread_json(spread: Spread) -> dict[str, Any]:
    return {
        "spread": spread.spread,
        "condition": spread.condition,
        "methods": {
            name: {
                "error": asdict(spread.errors[name]),
                "steps": spread.steps.get(name),
                "median_seconds": spread.timings[name].median,
                "quartiles_seconds": spread.timings[name].quartiles,
            }
            for name in spread.errors
        },
        "worst_error_after_steps": {
            name: [error.worst for error in errors]
            for name, errors in spread.errors_by_steps.items()
        },
    }


if __name__ == "__main__":
    main()
