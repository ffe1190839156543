"""Softmax-free attention on a photograph and on handwritten digits, in three minutes on two cores.

Run ``python -m examples.quickstart``; pictures and numbers go to out/quickstart/.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import softattn
from examples.quickstart.digits import show_digits
from examples.quickstart.photograph import show_attention_rows, show_costs
from examples.quickstart.report import Report


def main() -> None:
    """Runs the three parts. Ctrl-C keeps the results of the parts that are finished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("out/quickstart"), help="folder for pictures and numbers"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a short test run",
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each network on digits")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {arguments.seeds}")
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)

    start = time.perf_counter()
    console = Console()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        seeds = 1 if arguments.quick else arguments.seeds
        report = Report(out, arguments.quick, seeds, progress)
        report.numbers["environment"] = environment()
        report.print("softattn quickstart on " + ", ".join(environment().values()))
        try:
            for show in (show_costs, show_attention_rows, show_digits):
                show(report)
        except KeyboardInterrupt:
            report.print("Stopped. The results so far are kept.")
    seconds = time.perf_counter() - start
    numbers = out / "results.json"
    numbers.write_text(json.dumps(report.numbers | {"seconds": seconds}, indent=2) + "\n")
    console.print(f"{seconds:.0f} seconds. Pictures and numbers are in")
    for path in (*report.pictures, numbers):
        console.print(f"  {path}")


def environment() -> dict[str, str]:
    """The hardware and software of the measurements."""
    return {
        "device": f"CPU {platform.machine()}, {torch.get_num_threads()} threads",
        "python": f"Python {platform.python_version()}",
        "torch": f"PyTorch {torch.__version__}",
        "softattn": f"softattn {softattn.__version__}",
    }


if __name__ == "__main__":
    main()
