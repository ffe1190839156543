"""Expected times of the Triton kernels on a GPU, from bytes, operations and exponentials.

Derived, not measured: the time that each of the device's units needs on its own, at the rates that
the options name. If all work at once, the longest of the three is the time; if they take turns,
the sum is.
"""

import argparse
from dataclasses import dataclass

from benchmarks.common.arguments import HelpFormatter, positive_float, positive_int
from benchmarks.common.calls import MODES
from benchmarks.common.progress import terminal
from benchmarks.common.quantities import seconds_text
from benchmarks.common.report import new_table
from benchmarks.common.traffic import NORMALIZATIONS, traffic_elements


@dataclass(frozen=True)
class Work:
    """The work of one call for each token of each head: bytes, operations of matrix units, exp2.

    Inputs are in half precision; a factor computed in float32 counts as its two pieces.
    """

    bytes: float
    operations: float
    exponentials: float

    @classmethod
    def of(cls, normalization: str, mode: str, d: int, m: int) -> "Work":
        """Self-attention with d features, of values as well, and m landmarks."""
        quotient = normalization in ("token", "softmax")
        # Distances and Pᵀ V in two pieces, then distances and P W in three.
        features, squares, passes = 1 + 2 + 1 + 3, 3 * quotient, 2
        if mode == "forward+backward":
            # dW as Pᵀ V was; then distances, G Wᵀ, V dSᵀ, P dS, w L and wᵀ X.
            features += (1 + 2) + (1 + 2 + 2 + 3 + 2 + 2)
            # Pᵀ diag(dc) P, and P (M + Mᵀ).
            squares += (3 + 3) * quotient
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
    table = new_table(
        f"derived, not measured: batch × heads × n = {n:,}, {d} features, {m} landmarks",
        *("normalization", "mode", "memory", "matrix units", "exp2", "at once", "in turns"),
        "of the traffic limit",
        left=2,
    )
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    for name, default in (("--total-tokens", 2**22), ("--head-dim", 64), ("--landmarks", 64)):
        parser.add_argument(name, type=positive_int, default=default, help="of the call")
    for name, rate, text in (
        ("--bandwidth", 4.3, "of a copy, in TB/s; an H200's"),
        ("--matrix-rate", 788.0, "in bfloat16 TFLOP/s; an H200's"),
        (
            "--exponential-rate",
            4.18,
            "in 10¹² a second; 132 multiprocessors × 16 a cycle × 1.98 GHz",
        ),
    ):
        parser.add_argument(name, type=positive_float, default=rate, help=text)
    return parser


if __name__ == "__main__":
    main()
