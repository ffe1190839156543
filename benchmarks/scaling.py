"""Time and peak memory of softattn and its rivals over the number of tokens.

Rivals take turns at every size, so ratios within a run are fair on a noisy machine. A rival runs
up to the size where a cell would pass --seconds-per-cell, judged by its last size, or where its
n × n arrays would pass --memory-fraction. Ctrl-C keeps the finished cells.

"fraction of the traffic limit" is the time that softattn's reads and writes take at the copy
bandwidth of the same run, over the time measured (benchmarks/traffic.py counts them).

On CUDA the batch grows as n falls, so that batch × heads × n stays at --total-tokens or just above
it; times are those of events, with the L2 cache overwritten before every call; SDPA is held to one
backend by name, flash or cuDNN. One run of the default workload answers there

- how much faster than softmax attention softattn is at an n such as 3,136 or 16,384: the table
  "time of a rival over softattn's", column "SDPA, flash";
- from which n on it is faster: the row "from n" of the same table;
- how near it comes to what the memory allows: the last table.
"""

import argparse

from rich.console import Console

from benchmarks.arguments import parse, positive_float, positive_int
from benchmarks.environment import memory_bytes
from benchmarks.progress import progress_bar, terminal, until_interrupted
from benchmarks.report import start_report
from benchmarks.rivals import OURS, RIVALS, why_missing
from benchmarks.scaling_cells import (
    Budget,
    Cell,
    Grid,
    measure_cpu_memory,
    measure_times,
    timed_cells,
)
from benchmarks.scaling_figure import scaling_figure
from benchmarks.scaling_summary import Summary
from benchmarks.scaling_table import scaling_tables
from benchmarks.timing import copy_bandwidth
from benchmarks.workload import (
    MODES,
    Workload,
    fill_in_defaults,
    workload_of,
    workload_parser,
)

TOKENS = (256, 512, 1024, 3136, 4096, 12544, 16384, 25088, 65536, 131072)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the tables, and writes the JSON file and the figure."""
    args = parse(_parser(), argv)
    fill_in_defaults(args)
    console = terminal()
    rivals = _taking_part(args, console)
    workloads = [workload_of(args, tokens) for tokens in sorted(set(args.tokens))]
    report = start_report("scaling", args, argv)
    summary = Summary(Grid(), copy_bandwidth(args.device))
    with until_interrupted() as interrupted:
        _measure(args, rivals, workloads, summary.grid, console)
    if not summary.grid.cells:
        console.print("interrupted before the first cell was finished; nothing was written")
        return
    for table in scaling_tables(summary):
        console.print(table)
    for name in summary.grid.rivals():
        console.print(f"{RIVALS[name].label}: {RIVALS[name].note}", style="dim")
    _announce_failures(summary.grid, console)
    json_path = report.write_json(summary.as_json(), interrupted=interrupted.is_set())
    figure = scaling_figure(summary, report.environment.line())
    report.announce(console, [json_path, *report.write_figure(figure)])


def _parser() -> argparse.ArgumentParser:
    parser = workload_parser(__doc__)
    parser.add_argument(
        "--tokens", type=positive_int, nargs="+", default=list(TOKENS), help="the sizes n"
    )
    parser.add_argument(
        "--rivals",
        nargs="+",
        choices=tuple(RIVALS),
        metavar="RIVAL",
        help=f"who takes part besides {OURS} (default: all that can), of {', '.join(RIVALS)}",
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=7, help="how often the rivals take turns at a size"
    )
    parser.add_argument(
        "--seconds-per-cell",
        type=positive_float,
        default=30.0,
        help="for the warm-up and all rounds of one rival at one size in one mode, compilation not "
        "counted",
    )
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


def _announce_failures(grid: Grid, console: Console) -> None:
    """Each failure once, at the first cell that met it, by its first line."""
    first: dict[tuple[str, str], Cell] = {}
    for cell in grid.cells.values():
        if cell.failure is not None:
            first.setdefault((cell.rival, cell.failure), cell)
    for (rival, failure), cell in first.items():
        where = f"{RIVALS[rival].label} failed at n = {cell.tokens:,}, {cell.mode}"
        console.print(f"{where}: {failure.splitlines()[0]}", style="yellow", markup=False)


def _measure(
    args: argparse.Namespace,
    rivals: list[str],
    workloads: list[Workload],
    grid: Grid,
    console: Console,
) -> None:
    budget = Budget(args.seconds_per_cell, args.memory_fraction * memory_bytes(args.device))
    with progress_bar(console) as progress:
        total = len(rivals) * len(workloads) * len(MODES)
        task = progress.add_task("", total=total, stage="time")
        for workload in workloads:
            for mode in MODES:
                progress.update(task, description=f"{mode}, n = {workload.tokens:,}")
                measure_times(
                    rivals,
                    workload,
                    mode,
                    grid=grid,
                    budget=budget,
                    rounds=args.rounds,
                    memory=not args.no_memory,
                    done=lambda _: progress.advance(task),
                )
        if args.device == "cpu" and not args.no_memory:
            task = progress.add_task("", total=len(list(timed_cells(grid))), stage="memory")
            measure_cpu_memory(
                grid, done=lambda cell: progress.update(task, advance=1, description=cell)
            )


if __name__ == "__main__":
    main()
