"""One sequence over 1, 2 and 4 processes of this machine, and derived times for many GPUs.

Each process has one thread and a contiguous part of the tokens. Times are for forward and backward
of self-attention without projections, with landmarks from the tokens. CPU time is that of one
process: others on the machine hardly lengthen it. Memory is the growth of a process's peak, with
its inputs, output and gradients. The traffic of ring attention is computed: PyTorch's runs on GPUs
only. Ctrl-C keeps what is finished.
"""

import argparse
from dataclasses import asdict

from rich.table import Table

from benchmarks.common.arguments import common_parser, parse, positive_int
from benchmarks.common.progress import counted_steps
from benchmarks.common.quantities import bytes_text, seconds_text
from benchmarks.common.report import Report, new_table
from benchmarks.context_parallel.derived import LINKS, RANKS, Derived, Layer, derive
from benchmarks.context_parallel.processes import Cell, Workload, measure


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the tables and writes the JSON file."""
    args = parse(_parser(), argv)
    report = Report.of("context_parallel", args, argv)
    workload = Workload(args.heads, args.features, args.landmarks, args.normalization)
    cells: list[Cell] = []
    with counted_steps(report.console, "context parallel", len(args.ranks)) as steps:
        for ranks in args.ranks:
            steps.describe(f"{ranks} processes")
            cells += measure(workload, args.tokens, ranks, args.rounds)
            steps.advance()
    derived = [derive(Layer(), link, ranks) for link in LINKS for ranks in RANKS]
    results = {
        "cells": [asdict(cell) | {"ring_bytes": ring_bytes(cell, workload)} for cell in cells],
        "derived": [asdict(each) for each in derived],
    }
    tables = [_measured_table(cells, workload), _derived_table(derived)]
    report.finish(tables, results, interrupted=steps.interrupted)


def ring_bytes(cell: Cell, workload: Workload) -> int:
    """What each process of ring attention would give, forward and backward, in float32."""
    both = 2 * 4 * workload.heads * workload.features * cell.tokens // cell.ranks
    return both * (2 * (cell.ranks - 1) + cell.ranks) if cell.ranks > 1 else 0


def _measured_table(cells: list[Cell], workload: Workload) -> Table:
    headings = (
        *("tokens", "processes", "time", "of one", "CPU time", "of one", "peak", "of one"),
        *("given", "ring attention"),
    )
    table = new_table("forward and backward, by process", *headings, left=0)
    one = {cell.tokens: cell for cell in cells if cell.ranks == 1}
    for cell in sorted(cells, key=lambda cell: (cell.tokens, cell.ranks)):
        whole = one.get(cell.tokens)
        table.add_row(
            f"{cell.tokens:,}",
            str(cell.ranks),
            seconds_text(cell.seconds),
            "" if whole is None else f"{cell.seconds / whole.seconds:.2f}",
            seconds_text(cell.cpu_seconds),
            "" if whole is None else f"{cell.cpu_seconds / whole.cpu_seconds:.2f}",
            bytes_text(cell.peak_bytes),
            "" if whole is None else f"{cell.peak_bytes / whole.peak_bytes:.2f}",
            bytes_text(cell.given_bytes),
            bytes_text(ring_bytes(cell, workload)),
        )
    return table


def _derived_table(derived: list[Derived]) -> Table:
    layer = Layer()
    title = (
        f"derived, not measured: one layer of {layer.heads} heads of {layer.features}, "
        f"{layer.landmarks} landmarks, {layer.tokens:,} tokens in bfloat16"
    )
    headings = ("link", "GPUs", "tokens", "sums: steps", "sums: bytes", "ring attention: bytes")
    table = new_table(title, *headings)
    for each in derived:
        times = (each.tokens, each.sums_latency, each.sums_bytes, each.ring_bytes)
        table.add_row(each.link, str(each.ranks), *map(seconds_text, times))
    return table


def _parser() -> argparse.ArgumentParser:
    parser = common_parser(__doc__, dtypes=("float32",))
    add = parser.add_argument
    add("--tokens", type=positive_int, nargs="+", default=[65_536, 1_048_576], help="n")
    add("--ranks", type=positive_int, nargs="+", default=[1, 2, 4], help="numbers of processes")
    add("--rounds", type=positive_int, default=3, help="whose median counts")
    add("--heads", type=positive_int, default=2, help="H")
    add("--features", type=positive_int, default=32, help="d of a head")
    add("--landmarks", type=positive_int, default=49, help="m")
    add("--normalization", default="token", help="see softmax_free_attention")
    return parser


if __name__ == "__main__":
    main()
