"""What the Triton kernels should take on a GPU, from bytes, operations and exponentials.

Derived, not measured: the time that each of the device's units needs on its own, at rates that the
options name. If all work at once the longest of the three decides, if they take turns the sum.
"""

import argparse
from dataclasses import dataclass

from rich.table import Table

from benchmarks.common.arguments import positive_float, positive_int
from benchmarks.common.progress import terminal
from benchmarks.common.quantities import seconds_text
from benchmarks.common.traffic import traffic_elements
from benchmarks.common.calls import MODES
from benchmarks.common.traffic import NORMALIZATIONS


@dataclass(frozen=True)
class Work:
    """What one call does for each token of each head: bytes, operations of the matrix units, exp2.

    Half-precision inputs; a factor that was computed in float32 counts with its two pieces.
    """

    bytes: float
    operations: float
    exponentials: float

    @classmethod
    def of(cls, normalization: str, mode: str, d: int, m: int) -> "Work":
        """Self-attention with d features, of values as well, and m landmarks."""
        token = normalization == "token"
        # Distances and Pᵀ V in two pieces, then distances and P W in three.
        features, squares, passes = 1 + 2 + 1 + 3, 3 * token, 2
        if mode == "forward+backward":
            # dW as Pᵀ V was; then distances, G Wᵀ, V dSᵀ, P dS, w L and wᵀ X.
            features += (1 + 2) + (1 + 2 + 2 + 3 + 2 + 2)
            # Pᵀ diag(dc) P, and P (M + Mᵀ).
            squares += (3 + 3) * token
            passes += 2
        return cls(
            bytes=2 * d * traffic_elements(normalization, mode),
            operations=2 * m * (d * features + m * squares),
            exponentials=m * passes,
        )


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    args = _parser().parse_args(argv)
    n, d, m = args.total_tokens, args.head_dim, args.landmarks
    table = Table(
        title=f"derived, not measured: batch × heads × n = {n:,}, {d} features, {m} landmarks",
        title_justify="left",
    )
    for heading in ("normalization", "mode"):
        table.add_column(heading, no_wrap=True)
    for heading in (
        "memory",
        "matrix units",
        "exp2",
        "at once",
        "in turns",
        "of the traffic limit",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for normalization in NORMALIZATIONS:
        for mode in MODES:
            work = Work.of(normalization, mode, d, m)
            memory = n * work.bytes / (args.bandwidth * 1e12)
            units = (
                memory,
                n * work.operations / (args.matrix_rate * 1e12),
                n * work.exponentials / (args.exponential_rate * 1e12),
            )
            share = f"{memory / sum(units):.0%} to {memory / max(units):.0%}"
            table.add_row(
                normalization, mode, *map(seconds_text, (*units, max(units), sum(units))), share
            )
    terminal().print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--total-tokens", type=positive_int, default=2**22)
    parser.add_argument("--head-dim", type=positive_int, default=64)
    parser.add_argument("--landmarks", type=positive_int, default=64)
    parser.add_argument(
        "--bandwidth", type=positive_float, default=4.3, help="of a copy, in TB/s; an H200's"
    )
    parser.add_argument(
        "--matrix-rate", type=positive_float, default=788.0, help="in bfloat16 TFLOP/s; an H200's"
    )
    parser.add_argument(
        "--exponential-rate",
        type=positive_float,
        default=4.18,
        help="in 10¹² a second; 132 multiprocessors × 16 a cycle × 1.98 GHz",
    )
    return parser


if __name__ == "__main__":
    main()
