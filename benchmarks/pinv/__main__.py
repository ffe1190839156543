"""Error, steps and time of the Newton inverses of softattn and of torch.linalg.

All invert the same batch of A + ridge · I, where A are Gaussian Gram matrices of landmarks drawn
from N(0, spread²): a small spread collapses the spectrum. The method soft_norm_official has no
ridge of its own and is handed A + ridge · I. The truth is torch.linalg.pinv in float64. Times are
for the whole batch of --matrices, on CUDA by events; torch.linalg.inv and the Cholesky
factorisation read back there whether they succeeded, and "transpose" how far it got. Ctrl-C keeps
the finished spreads.
"""

import argparse
from dataclasses import asdict
from typing import Any

from benchmarks.arguments import DTYPES, common_parser, parse, positive_float, positive_int
from benchmarks.pinv_figure import pinv_figure
from benchmarks.pinv_measurements import Spread, gram_matrices, measure_spread
from benchmarks.pinv_methods import methods
from benchmarks.pinv_table import pinv_tables
from benchmarks.progress import progress_bar, terminal, until_interrupted
from benchmarks.report import start_report

SPREADS = (3.0, 1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.01)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the tables, and writes the JSON file and the figure."""
    args = parse(_parser(), argv)
    console = terminal()
    report = start_report("pinv", args, argv)
    spreads: list[Spread] = []
    with until_interrupted() as interrupted, progress_bar(console) as progress:
        task = progress.add_task("", total=len(args.spreads) * len(methods()), stage="pinv")
        for spread in args.spreads:
            progress.update(task, description=f"spread {spread:g}")
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
                    done=lambda _: progress.advance(task),
                )
            )
    if not spreads:
        console.print("interrupted before the first spread was finished; nothing was written")
        return
    for table in pinv_tables(spreads):
        console.print(table)
    results = {"spreads": [_spread_json(spread) for spread in spreads]}
    json_path = report.write_json(results, interrupted=interrupted.is_set())
    matrices = f"{args.matrices} Gaussian Gram matrices of {args.size} × {args.size}"
    matrices = f"{matrices}, ridge {args.ridge:g}"
    figure = pinv_figure(spreads, matrices, report.environment.line())
    report.announce(console, [json_path, *report.write_figure(figure)])


def _parser() -> argparse.ArgumentParser:
    parser = common_parser(__doc__)
    parser.add_argument("--matrices", type=positive_int, default=64, help="in the batch")
    parser.add_argument("--size", type=positive_int, default=49, help="rows of a matrix")
    parser.add_argument("--features", type=positive_int, default=32, help="of a landmark")
    parser.add_argument("--ridge", type=positive_float, default=0.01, help="added to the diagonal")
    parser.add_argument(
        "--spreads",
        type=positive_float,
        nargs="+",
        default=list(SPREADS),
        help="standard deviations of the landmarks",
    )
    parser.add_argument(
        "--max-steps", type=positive_int, default=40, help="where the curves over steps end"
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=7, help="how often the methods take turns"
    )
    parser.add_argument(
        "--seconds-per-cell",
        type=positive_float,
        default=3.0,
        help="for all rounds of one method at one spread",
    )
    return parser


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
