"""Time and peak memory of softattn and its rivals over the number of tokens.

Rivals take turns at every size, so ratios within a run are fair on a noisy machine. A rival runs
up to the size where a cell would pass --seconds-per-cell, judged by its last size, or where its
n × n arrays would pass --memory-fraction. Ctrl-C keeps the finished cells.
"""

import argparse

from rich.console import Console

from benchmarks.arguments import DTYPES, common_parser, parse, positive_float, positive_int
from benchmarks.environment import memory_bytes
from benchmarks.progress import progress_bar, terminal, until_interrupted
from benchmarks.report import start_report
from benchmarks.rivals import RIVALS, why_missing
from benchmarks.scaling_cells import Budget, Grid, measure_memory, measure_times, timed_cells
from benchmarks.scaling_figure import scaling_figure
from benchmarks.scaling_summary import OURS, Summary
from benchmarks.scaling_table import scaling_tables
from benchmarks.timing import copy_bandwidth
from benchmarks.workload import MODES, Workload, add_workload_options, workload_of

TOKENS = (256, 512, 1024, 3136, 4096, 12544, 16384, 25088, 65536, 131072)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the tables, and writes the JSON file and the figure."""
    args = parse(_parser(), argv)
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
    for table in scaling_tables(summary, workloads):
        console.print(table)
    for name in summary.grid.rivals():
        console.print(f"{RIVALS[name].label}: {RIVALS[name].note}", style="dim")
    json_path = report.write_json(summary.as_json(workloads), interrupted=interrupted.is_set())
    figure = scaling_figure(summary, workloads[0], report.environment.line())
    report.announce(console, [json_path, *report.write_figure(figure)])


def _parser() -> argparse.ArgumentParser:
    parser = common_parser(__doc__, tuple(DTYPES))
    parser.add_argument(
        "--tokens", type=positive_int, nargs="+", default=list(TOKENS), help="the sizes n"
    )
    parser.add_argument(
        "--rivals", nargs="+", choices=tuple(RIVALS), default=list(RIVALS), help="who takes part"
    )
    add_workload_options(parser)
    parser.add_argument(
        "--rounds", type=positive_int, default=7, help="how often the rivals take turns at a size"
    )
    parser.add_argument(
        "--seconds-per-cell",
        type=positive_float,
        default=30.0,
        help="for the warm-up and all rounds of one rival at one size in one mode",
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
    rivals = [OURS, *(name for name in RIVALS if name in args.rivals and name != OURS)]
    for name in rivals:
        if (reason := why_missing(name, args.dtype)) is not None:
            console.print(f"without {RIVALS[name].label}: {reason}", style="yellow")
    return [name for name in rivals if why_missing(name, args.dtype) is None]


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
                    done=lambda _: progress.advance(task),
                )
        if not args.no_memory:
            task = progress.add_task("", total=len(list(timed_cells(grid))), stage="memory")
            by_tokens = {workload.tokens: workload for workload in workloads}
            measure_memory(
                grid,
                by_tokens.__getitem__,
                done=lambda cell: progress.update(task, advance=1, description=cell),
            )


if __name__ == "__main__":
    main()
