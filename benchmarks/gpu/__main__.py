"""One command for a machine with a GPU: correctness first, then figures.

Every step is a process of its own with its own time limit, and its result is written before the
next begins, so that a run that ends early keeps what it has. Nothing is installed: the steps need
what ``pip install .[test,bench]`` brings, and those that miss something say so. Without a GPU,
``--device cpu`` runs with tiny sizes every step that does not need CUDA.
"""

import argparse
import json
import os
import signal
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.common.arguments import HelpFormatter
from benchmarks.common.progress import terminal
from benchmarks.common.quantities import seconds_text
from benchmarks.common.report import new_table
from benchmarks.gpu.pages import write_pages
from benchmarks.gpu.steps import STEPS, Machine, Step

ROOT = Path(__file__).parents[2]
PASS, FAIL, NOT_RUN = "pass", "fail", "not run"


@dataclass(frozen=True)
class Result:
    """The outcome of a step.

    status: ``PASS``, ``FAIL`` or ``NOT_RUN``.
    reason: why it failed or was not run.
    seconds: what it took.
    command: its words.
    """

    status: str
    reason: str = ""
    seconds: float = 0.0
    command: tuple[str, ...] = ()


def main(argv: list[str] | None = None) -> int:
    """Runs the steps or writes the pages; 1 where a step failed, else 0."""
    args = _parser().parse_args(argv)
    if args.report is not None:
        for path in write_pages(args.report, args.docs):
            print(f"wrote {path}")
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    machine = Machine(args.device, args.out.resolve())
    console = terminal()
    results = {}
    for step in STEPS:
        results[step.name] = _result(step, machine, args, console)
        _write_summary(args.out, results)
    _print_summary(results, console)
    return int(any(result.status == FAIL for result in results.values()))


def _result(step: Step, machine: Machine, args: argparse.Namespace, console: Console) -> Result:
    path = args.out / f"{step.name}.result.json"
    if args.resume and path.exists():
        earlier = Result(**json.loads(path.read_text()))
        if earlier.status == PASS:
            return earlier
    if (args.only and step.name not in args.only) or step.name in args.skip:
        return Result(NOT_RUN, "left out by --only or --skip")
    obstacle = step.obstacle(machine)
    if obstacle is not None:
        return Result(NOT_RUN, obstacle)
    console.print(f"{step.name}: {step.purpose}, at most {seconds_text(step.seconds)}")
    result = run(step, machine)
    path.write_text(json.dumps(asdict(result), indent=1) + "\n")
    console.print(f"{step.name}: {result.status} {result.reason} ({seconds_text(result.seconds)})")
    return result


def run(step: Step, machine: Machine) -> Result:
    """Runs a step to its end or its limit; its output goes to ``<name>.log``."""
    command = step.command(machine)
    begin = time.monotonic()
    with open(machine.folder / f"{step.name}.log", "w") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | step.environment(machine),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(step.seconds)
            reason = f"exit status {code}, see {step.name}.log" if code else ""
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
            # With the processes that it has started.
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            limit = isinstance(error, subprocess.TimeoutExpired)
            reason = "took longer than its limit" if limit else "interrupted"
    status = FAIL if reason else PASS
    return Result(status, reason, time.monotonic() - begin, tuple(command))


def _write_summary(folder: Path, results: dict[str, Result]) -> None:
    text = json.dumps({name: asdict(result) for name, result in results.items()}, indent=1)
    (folder / "summary.json").write_text(text + "\n")


def _print_summary(results: dict[str, Result], console: Console) -> None:
    table = new_table("summary", "step", "result", "why", "time", left=3)
    for name, result in results.items():
        spent = seconds_text(result.seconds) if result.seconds else ""
        table.add_row(name, result.status, result.reason, spent)
    console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    names = tuple(step.name for step in STEPS)
    add = parser.add_argument
    add("--out", type=Path, default=Path("out/gpu"), help="folder for results and logs")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only shows that steps start")
    add("--only", nargs="+", choices=names, default=[], help="steps to run")
    add("--skip", nargs="+", choices=names, default=[], help="steps to leave out")
    add("--resume", action="store_true", help="keep the steps of --out that passed")
    add("--report", type=Path, metavar="DIR", help="write the results of DIR into the docs and end")
    add("--docs", type=Path, default=ROOT / "docs", help="where --report writes")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
