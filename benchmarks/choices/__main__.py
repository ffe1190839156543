"""What the options of a layer cost: landmarks, normalisation, inverse and convolution.

A layer on one square map of tokens, with one option changed at a time, timed in turns. Ctrl-C
before the end writes nothing.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.common.arguments import (
    DTYPES,
    add_timing_options,
    common_parser,
    parse,
    positive_int,
)
from benchmarks.common.calls import MODES, Call
from benchmarks.common.progress import Steps, counted_steps
from benchmarks.common.quantities import seconds_text
from benchmarks.common.report import Report, new_table
from benchmarks.common.timing import Timing, paired_ratio, time_calls
from softattn import (
    AvgPoolLandmarks,
    ConvLandmarks,
    KMeansLandmarks,
    LandmarkSampler,
    SoftmaxFreeAttention,
    newton_pinv,
)

BASE = "49 means, token, minimax"
HEADS = 2


def layers(embed_dim: int) -> dict[str, Callable[[], SoftmaxFreeAttention]]:
    """Makes each layer, by the name of the choice."""

    def layer(landmarks: LandmarkSampler | None = None, **options: Any) -> SoftmaxFreeAttention:
        return SoftmaxFreeAttention(embed_dim, HEADS, landmarks=landmarks, **options)

    head_dim = embed_dim // HEADS
    means = {f"{m} means": lambda m=m: layer(AvgPoolLandmarks(m)) for m in (9, 25, 100, 196, 400)}
    return {
        BASE: layer,
        **means,
        "49 k-means": lambda: layer(KMeansLandmarks(49)),
        "convolution, stride 16": lambda: layer(ConvLandmarks(head_dim, 16)),
        "convolution, stride 8": lambda: layer(ConvLandmarks(head_dim, 8)),
        "none": lambda: layer(normalization="none"),
        "landmark": lambda: layer(normalization="landmark"),
        "softmax": lambda: layer(normalization="softmax"),
        "near field of 16": lambda: layer(near_field=16),
        "49 k-means, near field of 16": lambda: layer(KMeansLandmarks(49), near_field=16),
        "soft, 20 steps": lambda: layer(pinv="soft"),
        "Newton's steps": lambda: layer(pinv=newton_inverse),
        "value_conv=3": lambda: layer(value_conv=3),
        "value_conv=9": lambda: layer(value_conv=9),
    }


def newton_inverse(gram: Tensor) -> Tensor:
    """(A + 0.01 I)⁻¹ by matrix products, on a CPU too."""
    return newton_pinv(gram, method="minimax", ridge=0.01)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the table and writes the JSON file."""
    args = parse(_parser(), argv)
    report = Report.of("choices", args, argv)
    total = len(MODES) * len(layers(args.embed_dim))
    with counted_steps(report.console, "choices", total) as steps:
        timings = measure(args, steps)
    if steps.interrupted:
        report.console.print("interrupted; wrote nothing")
        return
    choices = [
        {"name": name} | {mode: _cost(timings[mode][name], timings[mode][BASE]) for mode in MODES}
        for name in timings[MODES[0]]
    ]
    report.finish([_table(choices, args.side**2)], {"choices": choices})


def measure(args: argparse.Namespace, steps: Steps) -> dict[str, dict[str, Timing]]:
    """Times of all layers, by mode and by name."""
    options = {"device": args.device, "dtype": DTYPES[args.dtype]}
    tokens = torch.randn(1, args.side, args.side, args.embed_dim, **options).requires_grad_()
    calls = {
        name: _call(make().to(**options), tokens) for name, make in layers(args.embed_dim).items()
    }
    timings = {}
    for mode in MODES:
        steps.describe(mode)
        timings[mode] = time_calls(
            calls,
            mode,
            args.device,
            rounds=args.rounds,
            seconds=args.seconds_per_cell,
            done=steps.advance,
        )
    return timings


def _call(layer: SoftmaxFreeAttention, tokens: Tensor) -> Call:
    return Call(lambda: layer(tokens), (tokens, *layer.parameters()))


def _cost(timing: Timing, base: Timing) -> dict[str, float]:
    return {"median_seconds": timing.median, "ratio": paired_ratio(timing, base)}


def _table(choices: list[dict[str, Any]], tokens: int) -> Table:
    """Times, and ratios to the first choice."""
    headings = [heading for mode in MODES for heading in (mode, "ratio")]
    table = new_table(f"a layer on {tokens:,} tokens, one option changed", "choice", *headings)
    for choice in choices:
        texts = [
            text
            for mode in MODES
            for text in (
                seconds_text(choice[mode]["median_seconds"]),
                f"{choice[mode]['ratio']:.2f}×",
            )
        ]
        table.add_row(choice["name"], *texts)
    return table


def _parser() -> argparse.ArgumentParser:
    parser = common_parser(__doc__)
    parser.add_argument("--side", type=positive_int, default=112, help="of the map")
    parser.add_argument("--embed-dim", type=positive_int, default=64, help=f"of {HEADS} heads")
    add_timing_options(parser, rounds=7, seconds=4.0)
    return parser


if __name__ == "__main__":
    main()
