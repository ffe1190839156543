"""What the choices of a layer cost: landmarks, normalisation, inverse and convolution.

A layer on one square map of tokens, with one choice changed at a time; all take turns. Forward, and
forward and backward. Ctrl-C before the end leaves nothing behind.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.arguments import DTYPES, common_parser, parse, positive_float, positive_int
from benchmarks.progress import progress_bar, terminal
from benchmarks.quantities import seconds_text
from benchmarks.report import start_report
from benchmarks.timing import Timing, paired_ratio, time_in_turns, warm_up
from softattn import AvgPoolLandmarks, ConvLandmarks, LandmarkSampler, SoftmaxFreeAttention

BASE = "49 means, token, minimax"
HEADS = 2


@dataclass(frozen=True)
class Choice:
    """A layer, and what it took."""

    name: str
    forward: Timing
    both: Timing


def layers(embed_dim: int) -> dict[str, Callable[[], SoftmaxFreeAttention]]:
    """What makes each layer, by the name of the choice."""

    def layer(landmarks: LandmarkSampler | None = None, **options: Any) -> SoftmaxFreeAttention:
        options = {"normalization": "token", **options}
        return SoftmaxFreeAttention(embed_dim, HEADS, landmarks=landmarks, **options)

    head_dim = embed_dim // HEADS
    means = {f"{m} means": lambda m=m: layer(AvgPoolLandmarks(m)) for m in (9, 25, 100, 196, 400)}
    return {
        BASE: layer,
        **means,
        "convolution, stride 16": lambda: layer(ConvLandmarks(head_dim, 16)),
        "convolution, stride 8": lambda: layer(ConvLandmarks(head_dim, 8)),
        "none": lambda: layer(normalization="none"),
        "landmark": lambda: layer(normalization="landmark"),
        "soft, 20 steps": lambda: layer(pinv="soft"),
        "Cholesky": lambda: layer(pinv=cholesky_inverse),
        "value_conv=3": lambda: layer(value_conv=3),
        "value_conv=9": lambda: layer(value_conv=9),
    }


def cholesky_inverse(gram: Tensor) -> Tensor:
    """(A + 0.01 I)⁻¹ by a factorisation."""
    ridge = 0.01 * torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype)
    return torch.cholesky_inverse(torch.linalg.cholesky(gram + ridge))


def measure(
    args: argparse.Namespace, done: Callable[[str], None] = lambda name: None
) -> list[Choice]:
    """All choices, which take turns."""
    options = {"device": args.device, "dtype": DTYPES[args.dtype]}
    tokens = torch.randn(1, args.side, args.side, args.embed_dim, **options)
    forward, both = {}, {}
    for name, make in layers(args.embed_dim).items():
        layer = make().to(**options)
        forward[name] = warm_up(partial(_forward, layer, tokens), args.device)
        both[name] = warm_up(partial(_both, layer, tokens.clone().requires_grad_()), args.device)
    timing = {"rounds": args.rounds, "seconds": args.seconds_per_cell, "done": done}
    forward_times, both_times = time_in_turns(forward, **timing), time_in_turns(both, **timing)
    return [Choice(name, forward_times[name], both_times[name]) for name in forward]


def _forward(layer: SoftmaxFreeAttention, tokens: Tensor) -> None:
    with torch.no_grad():
        layer(tokens)


def _both(layer: SoftmaxFreeAttention, tokens: Tensor) -> None:
    layer(tokens).sum().backward()


def table(choices: list[Choice], tokens: int) -> Table:
    """Times, and ratios to the first choice."""
    drawn = Table(title=f"a layer on {tokens:,} tokens, one choice changed", title_justify="left")
    drawn.add_column("choice")
    for heading in ("forward", "ratio", "and backward", "ratio"):
        drawn.add_column(heading, justify="right")
    base = choices[0]
    for choice in choices:
        drawn.add_row(
            choice.name,
            seconds_text(choice.forward.median),
            f"{paired_ratio(choice.forward, base.forward):.2f}×",
            seconds_text(choice.both.median),
            f"{paired_ratio(choice.both, base.both):.2f}×",
        )
    return drawn


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the table and writes the JSON file."""
    args = parse(_parser(), argv)
    console = terminal()
    report = start_report("choices", args, argv)
    with progress_bar(console) as progress:
        task = progress.add_task("", total=2 * len(layers(args.embed_dim)), stage="choices")
        choices = measure(args, lambda name: progress.advance(task))
    console.print(table(choices, args.side**2))
    results = {
        "choices": [
            {
                "name": choice.name,
                "forward_seconds": choice.forward.median,
                "forward_and_backward_seconds": choice.both.median,
                "forward_ratio": paired_ratio(choice.forward, choices[0].forward),
                "forward_and_backward_ratio": paired_ratio(choice.both, choices[0].both),
            }
            for choice in choices
        ]
    }
    report.announce(console, [report.write_json(results, interrupted=False)])


def _parser() -> argparse.ArgumentParser:
    parser = common_parser(__doc__)
    parser.add_argument("--side", type=positive_int, default=112, help="of the map")
    parser.add_argument("--embed-dim", type=positive_int, default=64, help=f"of {HEADS} heads")
    parser.add_argument("--rounds", type=positive_int, default=7, help="how often they take turns")
    parser.add_argument(
        "--seconds-per-cell", type=positive_float, default=4.0, help="for all rounds of one choice"
    )
    return parser


if __name__ == "__main__":
    main()
