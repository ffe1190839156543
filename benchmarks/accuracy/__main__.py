"""Error of softmax-free attention against exact attention, in O(n²), by input and landmarks.

Inputs, from easy to hard, are the tokens of a smooth photograph, those of a texture whose
neighbours differ nearly everywhere, and independent normal tokens. The tables show

- the error of "token" on maps of the largest of --sides, by input and by the way to choose
  landmarks;
- the error of "token" by size of the map, and the number of landmarks that reaches --target;
- the error on the photograph by sharpness of the kernel, for all normalisations but "softmax";
- the errors of "softmax" and "token" against softmax attention, by input and sharpness, beside the
  range of the log weights of "softmax", and how many of them meet its aims.

Errors are relative, in the Frobenius norm, over a sample of --rows tokens, against float64.
"landmark" is another operator than Gaussian attention: its error is that after the best scalar
factor. Ctrl-C keeps what is finished.
"""

import argparse
from dataclasses import asdict

from benchmarks.accuracy.comparisons import (
    COMPARISONS,
    TO_SOFTMAX,
    Error,
    Measurement,
    Setting,
    errors_of,
)
from benchmarks.accuracy.figure import accuracy_panels, softmax_panel
from benchmarks.accuracy.samplers import SAMPLERS
from benchmarks.accuracy.tables import (
    sampler_table,
    sharpness_table,
    size_table,
    softmax_aims_table,
    softmax_table,
)
from benchmarks.common.arguments import (
    DTYPES,
    common_parser,
    parse,
    positive_float,
    positive_int,
)
from benchmarks.common.progress import counted_steps
from benchmarks.common.report import Report
from benchmarks.common.token_maps import INPUTS


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the tables, and writes the JSON file and the figures."""
    args = parse(_parser(), argv)
    report = Report.of("accuracy", args, argv)
    studies = _studies(args)
    measurement = Measurement(args.head_dim, args.rows, args.dtype, args.device, args.seed)
    found: dict[str, list[Error]] = {name: [] for name in studies}
    settings = [(name, setting) for name, settings in studies.items() for setting in settings]
    total = sum(len(setting.samplers) * len(args.landmarks) for _, setting in settings)
    with counted_steps(report.console, "accuracy", total) as steps:
        for name, setting in settings:
            steps.describe(f"{name}: {setting.input}, {setting.side} × {setting.side}")
            for error in errors_of(setting, sorted(args.landmarks), measurement):
                found[name].append(error)
                steps.advance()
    if not found["samplers"]:
        report.console.print("interrupted before the first error was measured; wrote nothing")
        return
    inputs = accuracy_panels(found["samplers"])
    panels = {**inputs, **softmax_panel(found["softmax"])}
    report.finish(
        (
            sampler_table(found["samplers"]),
            size_table(found["sizes"], args.target),
            sharpness_table(found["sharpness"]),
            softmax_table(found["softmax"]),
            softmax_aims_table(found["softmax"]),
        ),
        {name: [asdict(error) for error in errors] for name, errors in found.items()},
        interrupted=steps.interrupted,
        panels=panels,
        together=list(inputs),
    )


def _studies(args: argparse.Namespace) -> dict[str, list[Setting]]:
    """What each table needs."""
    sides = sorted(args.sides)
    return {
        "samplers": [Setting(name, sides[-1], samplers=tuple(SAMPLERS)) for name in INPUTS],
        "sizes": [Setting(name, side) for name in INPUTS for side in sides],
        "sharpness": [
            Setting("photograph", args.side, comparison, sharpness)
            for comparison in COMPARISONS
            if comparison not in TO_SOFTMAX
            for sharpness in args.sharpness
        ],
        "softmax": [
            Setting(name, args.side, comparison, sharpness, ("average pooling", "k-means"))
            for name in INPUTS
            for sharpness in args.sharpness
            for comparison in TO_SOFTMAX
        ],
    }


def _parser() -> argparse.ArgumentParser:
    parser = common_parser(__doc__, tuple(DTYPES))
    add = parser.add_argument
    add("--head-dim", type=positive_int, default=32, help="features of a token")
    add("--rows", type=positive_int, default=1024, help="tokens whose outputs are compared")
    add("--side", type=positive_int, default=56, help="of the map for the tables by sharpness")
    add("--target", type=positive_float, default=0.02, help="the error to reach")
    for name, default, kind, text in (
        ("--sides", [14, 28, 56, 112, 256], positive_int, "of the maps for the other tables"),
        ("--landmarks", [9, 25, 49, 100, 196, 400], positive_int, "the numbers m"),
        ("--sharpness", [0.25, 0.5, 1.0, 2.0], positive_float, "factors on the queries"),
    ):
        add(name, type=kind, nargs="+", default=default, help=text)
    return parser


if __name__ == "__main__":
    main()
