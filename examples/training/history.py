"""The measurements of a training, epoch by epoch: a table, TensorBoard's events and a picture."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch.utils.tensorboard import SummaryWriter

from examples.training.atomic import replacing

# Columns of the table; "epoch" counts from 1.
Epoch = dict[str, float]


@dataclass(frozen=True)
class Panel:
    """A panel of the picture.

    ylabel: what the curves show, and its unit.
    curves: the label of each column that is drawn.
    percent: whether the values are shares, to be shown in per cent.
    """

    ylabel: str
    curves: dict[str, str]
    percent: bool = False


class History:
    """The epochs so far.

    Args:
        folder: where metrics.csv, curves.png and TensorBoard's events are written.
        score: the column whose largest value is best.
        panels: of the picture.
    """

    def __init__(self, folder: Path, score: str, panels: Sequence[Panel]) -> None:
        self.folder = folder
        self.score = score
        self.panels = panels
        self.epochs: list[Epoch] = []
        self._events: SummaryWriter | None = None

    @property
    def best(self) -> Epoch | None:
        """The first epoch with the best score."""
        return max(self.epochs, key=lambda epoch: epoch[self.score], default=None)

    def write(self) -> None:
        """Updates the table and TensorBoard's events to the last epoch."""
        last = self.epochs[-1]
        with replacing(self.folder / "metrics.csv") as partial, partial.open("w") as file:
            writer = csv.DictWriter(file, list(last))
            writer.writeheader()
            writer.writerows(self.epochs)
        number = int(last["epoch"])
        if self._events is None:
            # After an interruption, the events of epochs that run again are void.
            self._events = SummaryWriter(str(self.folder), purge_step=number)
        for name, value in last.items():
            if name != "epoch":
                self._events.add_scalar(name, value, number)
        self._events.flush()

    def draw(self) -> Path:
        """Draws the panels over the epochs; returns the path of the picture."""
        path = self.folder / "curves.png"
        figure = Figure(figsize=(4.5 * len(self.panels), 3.4), layout="constrained", dpi=150)
        numbers = [epoch["epoch"] for epoch in self.epochs]
        for index, panel in enumerate(self.panels):
            axes = figure.add_subplot(1, len(self.panels), index + 1)
            for name, label in panel.curves.items():
                values = [epoch[name] for epoch in self.epochs]
                axes.plot(numbers, values, label=label, marker="." if len(numbers) < 40 else "")
            axes.set(xlabel="epoch", ylabel=panel.ylabel)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if panel.percent:
                axes.yaxis.set_major_formatter(PercentFormatter(1))
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
            axes.spines[["top", "right"]].set_visible(False)
        with replacing(path) as partial:
            figure.savefig(partial)
        return path
