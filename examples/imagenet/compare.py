"""Compares trainings: prints a table, and draws their accuracies in one picture.

``python -m examples.imagenet.compare out/imagenet/soft_tiny out/imagenet/resnet18`` writes
out/imagenet/comparison.png; the folders are the outputs of ``examples.imagenet.train``.
"""

import argparse
import csv
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.console import Console
from rich.table import Table

from examples import card
from examples.imagenet import checkpoint
from examples.training.atomic import replacing
from examples.training.errors import InputError


@dataclass(frozen=True)
class Run:
    """One training.

    name: of its model.
    parameters: of its model.
    top1: top-1 accuracy on the validation images, after each epoch.
    images_per_second: mean over the epochs.
    """

    name: str
    parameters: int
    top1: list[float]
    images_per_second: float


def read(folder: Path) -> Run:
    """Reads the training in a folder.

    Raises:
        InputError: the folder has no training.
    """
    metrics = folder / "metrics.csv"
    if not metrics.exists():
        raise InputError(f"{metrics} does not exist; give the output folders of trainings")
    rows = list(csv.DictReader(metrics.read_text().splitlines()))
    weights = folder / "last.safetensors"
    speeds = [float(row["images_per_second"]) for row in rows]
    return Run(
        checkpoint.describe(weights).name,
        sum(parameter.numel() for parameter in checkpoint.load(weights).parameters()),
        [float(row["top1"]) for row in rows],
        len(speeds) / sum(1 / speed for speed in speeds),
    )


def told_apart(runs: list[Run], folders: list[Path]) -> list[Run]:
    """Adds the folder to the names of runs with the same model."""
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else replace(run, name=f"{run.name} ({folder})")
        for run, folder in zip(runs, folders, strict=True)
    ]


def table(runs: list[Run]) -> Table:
    """A row for each training."""
    drawn = Table()
    drawn.add_column("model")
    for heading in ("parameters", "epochs", "last top-1", "best top-1", "images/s in training"):
        drawn.add_column(heading, justify="right")
    for run in runs:
        drawn.add_row(
            run.name,
            f"{run.parameters:,}",
            f"{len(run.top1)}",
            f"{run.top1[-1]:.1%}",
            f"{max(run.top1):.1%}",
            f"{run.images_per_second:.1f}",
        )
    return drawn


@matplotlib.rc_context(card.STYLE)
def draw(runs: list[Run], path: Path) -> None:
    """Draws the accuracies over the epochs."""
    figure = Figure(figsize=(5.4, 4.6), layout="constrained", dpi=160)
    axes = figure.subplots()
    for run, colour in zip(runs, cycle(card.COLOURS), strict=False):
        epochs = range(1, len(run.top1) + 1)
        axes.plot(epochs, run.top1, marker=".", label=run.name, color=colour)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy, top-1")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid()
    axes.legend()
    with replacing(path) as partial:
        figure.savefig(partial)


def main() -> None:
    """Prints and draws, or prints what is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="outputs of trainings")
    parser.add_argument(
        "--picture", type=Path, default=Path("out/imagenet/comparison.png"), help="file to write"
    )
    arguments = parser.parse_args()
    try:
        runs = told_apart([read(folder) for folder in arguments.folders], arguments.folders)
    except InputError as error:
        parser.exit(1, f"error: {error}\n")
    Console().print(table(runs))
    draw(runs, arguments.picture)
    print(arguments.picture)


if __name__ == "__main__":
    main()
