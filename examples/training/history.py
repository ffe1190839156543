"""What a training did, epoch by epoch: a table, TensorBoard's events and a picture."""

import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch.utils.tensorboard import SummaryWriter

from examples.imagenet.atomic import replacing


@dataclass(frozen=True)
class Epoch:
    """One epoch.

    epoch: its number, from 1.
    updates: of the optimiser since the start.
    lr: learning rate of its last update.
    train_loss: mean over its updates, mixup and label smoothing included.
    val_loss: mean cross-entropy after it.
    top1: share of validation images whose class had the largest logit.
    top5: share of those whose class was among the five largest.
    images_per_second: in training, of all processes together.
    unreadable: training files that were met since the run was last started, and could not be read.
    """

    epoch: int
    updates: int
    lr: float
    train_loss: float
    val_loss: float
    top1: float
    top5: float
    images_per_second: float
    unreadable: int


class History:
    """The epochs so far.

    Args:
        folder: where metrics.csv, curves.png and TensorBoard's events are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.epochs: list[Epoch] = []
        self._events: SummaryWriter | None = None

    @property
    def best(self) -> Epoch | None:
        """The first with the best top-1 accuracy."""
        return max(self.epochs, key=lambda epoch: epoch.top1, default=None)

    def write(self) -> None:
        """Brings the table and TensorBoard's events to the last epoch."""
        epoch = self.epochs[-1]
        with replacing(self.folder / "metrics.csv") as partial, partial.open("w") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Epoch)])
            writer.writeheader()
            writer.writerows(map(asdict, self.epochs))
        if self._events is None:
            # After an interruption, epochs that are gone through again no longer count.
            self._events = SummaryWriter(str(self.folder), purge_step=epoch.epoch)
        for name, value in asdict(epoch).items():
            if name != "epoch":
                self._events.add_scalar(name, value, epoch.epoch)
        self._events.flush()

    def draw(self) -> Path:
        """Draws losses and accuracies over the epochs; returns the picture's path."""
        path = self.folder / "curves.png"
        figure = Figure(figsize=(9, 3.4), layout="constrained", dpi=150)
        losses, accuracies = figure.subplots(1, 2)
        numbers = [epoch.epoch for epoch in self.epochs]
        for axes, curves in (
            (losses, {"train_loss": "training", "val_loss": "validation"}),
            (accuracies, {"top1": "top-1", "top5": "top-5"}),
        ):
            for name, label in curves.items():
                values = [getattr(epoch, name) for epoch in self.epochs]
                axes.plot(numbers, values, label=label, marker="." if len(numbers) < 40 else "")
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
            axes.spines[["top", "right"]].set_visible(False)
        losses.set_ylabel("cross-entropy in nats")
        accuracies.set_ylabel("accuracy on the validation images")
        accuracies.yaxis.set_major_formatter(PercentFormatter(1))
        with replacing(path) as partial:
            figure.savefig(partial)
        return path
