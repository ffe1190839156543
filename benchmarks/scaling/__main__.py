"""Time, peak memory and error of softattn over the number of tokens, beside other attentions.

All take turns at every size, so ratios within a run are fair on a noisy machine. An attention is
skipped from the size on where a cell would take more than --seconds-per-cell, judged by its last
size, or where its n × n arrays would take more than --memory-fraction. Ctrl-C keeps the finished
cells.

The error is that of softattn's output, in the run that is timed, against the exact attention that
its normalisation approximates: exact Gaussian attention, for "token" divided by its row sums.

"fraction of the traffic limit" is the time of softattn's reads and writes at the copy bandwidth of
the same run over the measured time (benchmarks/common/traffic.py counts them).

On CUDA the batch grows as n falls, so that batch × heads × n stays at --total-tokens or just above
it; times are those of events, and the L2 cache is cleared before every call; SDPA runs by one
backend by name, flash or cuDNN. One run of the default workload then shows

- how much faster than softmax attention softattn is at an n such as 3,136 or 16,384: the table
  "time over softattn's", column "SDPA, flash";
- from which n on it is faster: the row "from n" of the same table;
- how near it comes to the limit of the memory: the last table.
"""

import argparse

from rich.console import Console

from benchmarks.common.arguments import add_timing_options, parse, positive_float, positive_int
from benchmarks.common.calls import MODES
from benchmarks.common.environment import memory_bytes
from benchmarks.common.progress import counted_steps
from benchmarks.common.report import Report
from benchmarks.common.timing import copy_bandwidth
from benchmarks.scaling.cells import Budget, Cell, Grid, measure_cells
from benchmarks.scaling.figure import scaling_panels
from benchmarks.scaling.memory import peak_bytes_in_process
from benchmarks.scaling.rivals import OURS, RIVALS, why_missing
from benchmarks.scaling.summary import Summary
from benchmarks.scaling.tables import scaling_tables
from benchmarks.scaling.workload import fill_in_defaults, workload_of, workload_parser

TOKENS = (256, 512, 1024, 3136, 4096, 12544, 16384, 25088, 65536, 131072)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the tables, and writes the JSON file and the figures."""
    args = parse(_parser(), argv)
    fill_in_defaults(args)
    report = Report.of("scaling", args, argv)
    rivals = _taking_part(args, report.console)
    summary = Summary(Grid(), copy_bandwidth(args.device))
    interrupted = _measure(args, rivals, summary.grid, report.console)
    if not summary.grid.cells:
        report.console.print("interrupted before the first cell was finished; wrote nothing")
        return
    for name in summary.grid.rivals():
        report.console.print(f"{RIVALS[name].label}: {RIVALS[name].note}", style="dim")
    _announce_failures(summary.grid, report.console)
    panels = scaling_panels(summary)
    report.finish(
        scaling_tables(summary),
        summary.as_json(),
        interrupted=interrupted,
        panels=panels,
        together=[name for name in ("time", "error") if name in panels],
    )


def _parser() -> argparse.ArgumentParser:
    parser = workload_parser(__doc__)
    parser.add_argument(
        "--tokens", type=positive_int, nargs="+", default=list(TOKENS), help="the sizes n"
    )
    parser.add_argument(
        "--rivals",
        nargs="*",
        choices=tuple(RIVALS),
        metavar="RIVAL",
        help=f"compared with {OURS} (default: all that can run), of {', '.join(RIVALS)}",
    )
    add_timing_options(parser, rounds=7, seconds=30.0)
    parser.add_argument(
        "--memory-fraction",
        type=positive_float,
        default=0.5,
        help="of the device's memory, for arrays of n × n",
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    return parser


def _taking_part(args: argparse.Namespace, console: Console) -> list[str]:
    asked = RIVALS if args.rivals is None else args.rivals
    rivals = [OURS, *(name for name in RIVALS if name in asked and name != OURS)]
    reasons = {name: why_missing(name, args.device, args.dtype) for name in rivals}
    for name, reason in reasons.items():
        if reason is not None:
            console.print(f"without {RIVALS[name].label}: {reason}", style="yellow")
    return [name for name in rivals if reasons[name] is None]


def _measure(args: argparse.Namespace, rivals: list[str], grid: Grid, console: Console) -> bool:
    """Fills the grid; returns whether Ctrl-C ended it."""
    budget = Budget(args.seconds_per_cell, args.memory_fraction * memory_bytes(args.device))
    workloads = [workload_of(args, tokens) for tokens in sorted(set(args.tokens))]
    total = len(rivals) * len(workloads) * len(MODES)
    with counted_steps(console, "time", total) as steps:
        for workload in workloads:
            for mode in MODES:
                steps.describe(f"{mode}, n = {workload.tokens:,}")
                measure_cells(
                    rivals,
                    workload,
                    mode,
                    grid=grid,
                    budget=budget,
                    rounds=args.rounds,
                    memory=not args.no_memory,
                    done=steps.advance,
                )
    if args.no_memory or args.device == "cuda" or steps.interrupted:
        return steps.interrupted
    with counted_steps(console, "memory", len(grid.timed())) as steps:
        for cell in grid.timed():
            steps.describe(f"{RIVALS[cell.rival].label}, n = {cell.tokens:,}")
            cell.peak_bytes = peak_bytes_in_process(cell.rival, cell.workload, cell.mode)
            steps.advance()
    return steps.interrupted


def _announce_failures(grid: Grid, console: Console) -> None:
    """Prints each failure once, at the first cell where it occurred, by its first line."""
    first: dict[tuple[str, str], Cell] = {}
    for cell in grid.cells.values():
        if cell.failure is not None:
            first.setdefault((cell.rival, cell.failure), cell)
    for (rival, failure), cell in first.items():
        where = f"{RIVALS[rival].label} failed at n = {cell.tokens:,}, {cell.mode}"
        console.print(f"{where}: {failure.splitlines()[0]}", style="yellow", markup=False)


if __name__ == "__main__":
    main()
