"""Launches of one call on Triton, by name, and the time that its host needs to issue them.

Needs no GPU: everything runs but the launch itself. Triton compiles the kernels and finds them in
its cache at every call, and leaves out the last step. PyTorch's operations run on the CPU on few
tokens, where they take about as long as their launches on a GPU do. Each of them that is neither a
view nor an allocation counts as one launch.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common.arguments import HelpFormatter, positive_int
from benchmarks.common.progress import counted_steps, terminal
from benchmarks.common.quantities import seconds_text
from benchmarks.common.report import new_table
from benchmarks.common.traffic import NORMALIZATIONS
from benchmarks.kernels.cases import DTYPES

ROOT = Path(__file__).parents[2]


def main(argv: list[str] | None = None) -> None:
    """Prints the tables."""
    args = _parser().parse_args(argv)
    checkouts = [args.checkout, *args.against]
    console = terminal()
    found: dict[Path, list[dict[str, Any]]] = {checkout: [] for checkout in checkouts}
    with counted_steps(console, "measure", args.rounds * len(checkouts)) as steps:
        for _ in range(args.rounds):
            for checkout in checkouts:
                steps.describe(str(checkout))
                found[checkout].append(_measured(args, checkout))
                steps.advance()
    if steps.interrupted:
        return
    for checkout in checkouts:
        _print_launches(checkout, found[checkout][0])
    _print_times(found)


def _print_launches(checkout: Path, calls: dict[str, Any]) -> None:
    table = new_table(f"launches of {checkout}", "call", "launches", "by name", left=1)
    table.columns[2].justify = "left"
    for name, call in calls.items():
        launches = call["launches"]
        by_name = ", ".join(f"{count} {launch}" for launch, count in launches.items())
        table.add_row(name, str(sum(launches.values())), by_name)
    terminal().print(table)


def _print_times(found: dict[Path, list[dict[str, Any]]]) -> None:
    first, *others = found
    table = new_table(
        "host time: the fastest round's median, and what of it Triton takes to launch",
        "call",
        *(str(checkout) for checkout in found),
        *(f"{first} / {other}" for other in others),
    )
    for name in found[first][0]:
        best = {
            checkout: min((r[name] for r in rounds if name in r), key=lambda c: c["seconds"])
            for checkout, rounds in found.items()
            if any(name in r for r in rounds)
        }
        cells = [
            f"{seconds_text(best[c]['seconds'])} ({seconds_text(best[c]['triton'])})"
            if c in best
            else ""
            for c in found
        ]
        ratios = [
            f"{best[first]['seconds'] / best[other]['seconds']:.2f}" if other in best else ""
            for other in others
        ]
        table.add_row(name, *cells, *ratios)
    terminal().print(table)


def _measured(args: argparse.Namespace, checkout: Path) -> dict[str, Any]:
    """What a new process that imports softattn from ``checkout`` measures."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        options = [
            *(str(checkout.resolve()), file.name, "--calls", str(args.calls)),
            *("--dtypes", *args.dtypes, "--normalizations", *args.normalizations),
        ]
        # The worker compiles its kernels.
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        subprocess.run(
            [sys.executable, "-m", "benchmarks.kernels.overhead_worker", *options],
            check=True,
            cwd=ROOT,
            env=environment,
        )
        return dict(json.loads(Path(file.name).read_text()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--checkout", type=Path, default=ROOT, help="whose softattn is measured")
    add("--against", type=Path, nargs="*", default=[], help="further ones, in turns with it")
    dtypes = ["bfloat16", "float32"]
    add("--dtypes", nargs="+", choices=tuple(DTYPES), default=dtypes, help="of the tensors")
    add("--normalizations", nargs="+", default=[*NORMALIZATIONS, "softmax"], help="to measure")
    add("--rounds", type=positive_int, default=3, help="processes for each checkout")
    add("--calls", type=positive_int, default=200, help="timed in a process")
    return parser


if __name__ == "__main__":
    main()
