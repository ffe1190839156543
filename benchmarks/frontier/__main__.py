"""Error over time: what more landmarks, k-means and near fields buy.

The error of "token" to exact row-normalised Gaussian attention, against float64 on --rows tokens,
and the time of a forward pass with the choice of the landmarks. "near 16" is a near field of 16.
Inputs are those of ``benchmarks.accuracy``. Ctrl-C keeps the inputs that are finished.
"""

import argparse
from dataclasses import asdict, fields

from benchmarks.common.arguments import (
    add_timing_options,
    common_parser,
    parse,
    positive_int,
)
from benchmarks.common.progress import counted_steps
from benchmarks.common.report import Report
from benchmarks.common.token_maps import INPUTS
from benchmarks.frontier.figure import frontier_panels
from benchmarks.frontier.measurements import WAYS, Measurement, Point, points_of
from benchmarks.frontier.tables import frontier_table


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the table, and writes the JSON file and the figures."""
    args = parse(_parser(), argv)
    report = Report.of("frontier", args, argv)
    chosen = {field.name: getattr(args, field.name) for field in fields(Measurement)}
    points: list[Point] = []
    total = len(INPUTS) * len(WAYS) * len(args.landmarks)
    with counted_steps(report.console, "frontier", total) as steps:
        for name in INPUTS:
            steps.describe(name)
            for point in points_of(name, sorted(args.landmarks), Measurement(**chosen)):
                points.append(point)
                steps.advance()
    if not points:
        report.console.print("interrupted before the first input was measured; wrote nothing")
        return
    panels = frontier_panels(points)
    report.finish(
        [frontier_table(points, args.side**2)],
        {"points": [asdict(point) for point in points]},
        interrupted=steps.interrupted,
        panels=panels,
        together=list(panels),
    )


def _parser() -> argparse.ArgumentParser:
    parser = common_parser(__doc__)
    add_timing_options(parser, rounds=5, seconds=1.0)
    add = parser.add_argument
    add("--side", type=positive_int, default=112, help="of the map")
    add("--heads", type=positive_int, default=2, help="heads")
    add("--head-dim", type=positive_int, default=32, help="features of a head")
    add("--rows", type=positive_int, default=1024, help="tokens whose outputs are compared")
    numbers = [9, 16, 25, 49, 100, 196, 400]
    add("--landmarks", type=positive_int, nargs="+", default=numbers, help="the numbers m")
    return parser


if __name__ == "__main__":
    main()
