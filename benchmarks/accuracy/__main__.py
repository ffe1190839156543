"""Error of softmax-free attention against the exact O(n²) answers, on a photograph's tokens.

Compared are "none" and "landmark" with exact Gaussian attention, "token" with the row-normalised
one, and "token" on tokens of one norm with softmax attention, which is then the same as the
row-normalised Gaussian. "landmark" is another operator than Gaussian attention: shown is its error
after the best scalar factor, and the JSON file has both. Errors are relative, in the Frobenius
norm, against answers in float64. Ctrl-C keeps the finished cells.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

from benchmarks.accuracy_comparisons import (
    COMPARISONS,
    Error,
    approximate,
    errors_of,
    exact_answer,
    tokens_for,
)
from benchmarks.accuracy_figure import accuracy_figure
from benchmarks.accuracy_samplers import SAMPLERS
from benchmarks.accuracy_table import accuracy_tables
from benchmarks.arguments import DTYPES, common_parser, parse, positive_float, positive_int
from benchmarks.photograph_tokens import PHOTOGRAPHS, photograph_tokens
from benchmarks.progress import progress_bar, terminal, until_interrupted
from benchmarks.report import start_report


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the tables, and writes the JSON file and the figure."""
    args = parse(_parser(), argv)
    console = terminal()
    report = start_report("accuracy", args, argv)
    generator = torch.Generator().manual_seed(args.seed)
    tokens, values = photograph_tokens(args.photograph, args.side, args.head_dim, generator)
    errors: list[Error] = []
    equalities: dict[str, float] = {}
    with until_interrupted() as interrupted, progress_bar(console) as progress:
        cells = len(COMPARISONS) * len(args.sharpness) * len(SAMPLERS) * len(args.landmarks)
        task = progress.add_task("", total=cells, stage="error")
        for sharpness in args.sharpness:
            equalities[f"{sharpness:g}"] = softmax_equality(tokens, values, sharpness, args.device)
            for name in COMPARISONS:
                progress.update(task, description=f"{name}, sharpness {sharpness:g}")
                _measure(
                    args, name, sharpness, tokens, values, errors, lambda: progress.advance(task)
                )
    if not errors:
        console.print("interrupted before the first cell was finished; nothing was written")
        return
    for table in accuracy_tables(errors):
        console.print(table)
    for sharpness, error in equalities.items():
        console.print(
            f"row-normalised Gaussian to softmax, tokens of one norm × {sharpness}: {error:.1e}"
        )
    results = {
        "tokens": args.side**2,
        "comparisons": {name: asdict(comparison) for name, comparison in COMPARISONS.items()},
        "errors": [{**asdict(error), "shown": error.shown} for error in errors],
        "normalised_gaussian_to_softmax": equalities,
    }
    json_path = report.write_json(results, interrupted=interrupted.is_set())
    subject = f"{args.side**2:,} tokens of {args.photograph}, {args.head_dim} features"
    figure = accuracy_figure(errors, subject, report.environment.line())
    report.announce(console, [json_path, *report.write_figure(figure)])


def softmax_equality(tokens: Tensor, values: Tensor, sharpness: float, device: str) -> float:
    """The float64 error between row-normalised Gaussian and softmax on tokens of one norm."""
    same = tokens_for(COMPARISONS["softmax"], tokens, sharpness).to(device)
    gaussian = exact_answer("normalised", same, values.to(device))
    return errors_of(gaussian, exact_answer("softmax", same, values.to(device)))[0]


def _measure(
    args: argparse.Namespace,
    name: str,
    sharpness: float,
    tokens: Tensor,
    values: Tensor,
    errors: list[Error],
    done: Callable[[], object],
) -> None:
    comparison = COMPARISONS[name]
    dtype = DTYPES[args.dtype]
    tokens = tokens_for(comparison, tokens, sharpness)
    truth = exact_answer(comparison.truth, tokens.to(args.device), values.to(args.device))
    for sampler, choose in SAMPLERS.items():
        for m in args.landmarks:
            landmarks = choose(tokens, args.side, m, args.seed)
            inputs = (x.to(args.device, dtype) for x in (tokens, values, landmarks))
            plain, scaled = errors_of(approximate(comparison, *inputs), truth)
            errors.append(Error(name, sharpness, sampler, m, plain, scaled))
            done()


def _parser() -> argparse.ArgumentParser:
    parser = common_parser(__doc__, tuple(DTYPES))
    parser.add_argument("--photograph", choices=PHOTOGRAPHS, default="china.jpg", help="the image")
    parser.add_argument("--side", type=positive_int, default=55, help="patches per side; n = side²")
    parser.add_argument("--head-dim", type=positive_int, default=32, help="features of a token")
    parser.add_argument(
        "--landmarks",
        type=positive_int,
        nargs="+",
        default=[9, 25, 49, 100, 196],
        help="the numbers m",
    )
    parser.add_argument(
        "--sharpness",
        type=positive_float,
        nargs="+",
        default=[0.25, 0.5, 1.0, 2.0],
        help="factors on the tokens",
    )
    return parser


if __name__ == "__main__":
    main()
