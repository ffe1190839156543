"""A training from its first epoch, or from where it was interrupted, to its last."""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from examples.training import snapshot
from examples.training.errors import InputError
from examples.training.history import Epoch, History
from examples.training.interruption import Interrupted, Interruption, noticing_interruption
from examples.training.screen import Advance, Screen
from examples.training.state import Training

# Number of updates between two readings of the loss, or of the other processes' signals. Each
# reading makes a GPU wait.
LOOK_EVERY = 10


@dataclass(frozen=True)
class Settings:
    """How a run is carried out. Settings do not change the result, except for rounding.

    Args:
        out: folder of the files that the run writes.
        workers: processes that read images, for each process that trains.
        channels_last: keep channels adjacent in memory.
        grad_checkpointing: save memory by computing blocks again in the backward pass.
        save_minutes: minutes between two snapshots; there is also one after every epoch.
    """

    out: Path
    workers: int = min(8, os.cpu_count() or 1)
    channels_last: bool = False
    grad_checkpointing: bool = False
    save_minutes: float = 10.0


class Recipe(Protocol):
    """A dataclass of numbers, strings, and lists and dicts of them; see ``examples.imagenet``."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def epochs(self) -> int:
        """Number of passes over the training samples."""


class Task(Protocol):
    """What a training learns, and from what.

    samples: what its samples are called, such as "images".
    samples_per_update: number of samples in an update, over all processes.
    """

    samples: str
    samples_per_update: int

    def batches(self, epoch: int, first_update: int) -> Iterable[Sequence[Any]]:
        """The batches of each update of an epoch (from 0), from ``first_update`` on."""

    def evaluate(self) -> dict[str, float]:
        """Scores of the model, by the column of the history."""

    def save_weights(self, path: Path) -> None:
        """Writes the weights of the model in a file."""


class Loop:
    """Epochs of updates, with evaluations and snapshots in between.

    In ``settings.out`` it writes best.safetensors and last.safetensors, metrics.csv, curves.png and
    TensorBoard's events, and training.pt, from which an interrupted run continues.

    Args:
        task: to learn.
        training: at its start.
        history: without epochs.
        recipe: what decides the result, apart from the data. With ``data``, the number of processes
            and the precision it must be the same for a run to continue.
        data: descriptions of the data, by their names in error messages.
        settings: of the run.
        screen: for messages and bars.
    """

    def __init__(
        self,
        task: Task,
        training: Training,
        history: History,
        *,
        recipe: Recipe,
        data: dict[str, Any],
        settings: Settings,
        screen: Screen,
    ) -> None:
        self.task = task
        self.training = training
        self.history = history
        self.epochs = recipe.epochs
        self.settings = settings
        self.screen = screen
        self.accelerator = training.accelerator
        self.circumstances = {
            **asdict(recipe),
            **data,
            "processes": self.accelerator.num_processes,
            "precision": self.accelerator.mixed_precision,
        }
        self.snapshot_path = settings.out / "training.pt"
        self.last_saved = time.monotonic()

    def run(self) -> Epoch:
        """Continues from the snapshot if there is one; returns the best epoch.

        Raises:
            Interrupted: by a signal, after a snapshot.
            InputError: the snapshot in ``settings.out`` does not fit.
        """
        training = self.training
        self._resume()
        total = self.epochs * training.updates_per_epoch
        with (
            noticing_interruption(self.screen.print) as interruption,
            self.screen.bar("training", total, "updates", training.updates) as advance,
        ):
            while training.epoch < self.epochs:
                self._close_epoch(self._train_epoch(advance, interruption))
                self._stop_if_interrupted(interruption)
        if self.accelerator.is_main_process:
            self.history.draw()
        best = self.history.best
        assert best is not None
        return best

    def _resume(self) -> None:
        if self.snapshot_path.exists():
            state = snapshot.load(self.snapshot_path, self.circumstances)
            self.training.load_state_dict(state["training"])
            self.history.epochs[:] = state["history"]
            self.screen.print(f"{self.snapshot_path}: continuing {self._place()}")
        updates = torch.tensor([self.training.updates], device=self.accelerator.device)
        if len(set(self.accelerator.gather(updates).tolist())) > 1:
            raise InputError(
                f"not all processes found {self.snapshot_path}; --out must be one folder that the "
                "machines share"
            )

    def _train_epoch(self, advance: Advance, interruption: Interruption) -> float:
        """Does the rest of an epoch; returns samples per second."""
        training = self.training
        description = f"epoch {training.epoch + 1} of {self.epochs}"
        self.screen.unreadable = 0
        first, start = training.updates, time.perf_counter()

        def samples_per_second() -> float:
            samples = (training.updates - first) * self.task.samples_per_update
            return samples / (time.perf_counter() - start)

        for batches in self.task.batches(training.epoch, training.updates_into_epoch):
            training.update(batches)
            look = training.updates % LOOK_EVERY == 0
            advance(
                description=f"{description}, loss {training.mean_loss():.3f}, "
                f"{samples_per_second():.3g} {self.task.samples}/s"
                if look
                else None
            )
            # The last update of an epoch is saved after its evaluation.
            if training.updates_into_epoch and (look or self.accelerator.num_processes == 1):
                self._stop_if_interrupted(interruption)
                if time.monotonic() - self.last_saved > 60 * self.settings.save_minutes:
                    self._save()
        # Reading the loss waits for a GPU to finish.
        training.mean_loss()
        return samples_per_second()

    def _close_epoch(self, samples_per_second: float) -> None:
        """Evaluates the model, records the epoch and saves the weights."""
        training = self.training
        unreadable = torch.tensor(self.screen.unreadable, device=self.accelerator.device)
        unreadable = self.accelerator.reduce(unreadable, "sum")
        training.share_buffers()
        epoch = {
            "epoch": training.epoch,
            "updates": training.updates,
            "lr": training.learning_rate,
            "train_loss": training.mean_loss(),
            **self.task.evaluate(),
            f"{self.task.samples}_per_second": samples_per_second,
            "unreadable": int(unreadable),
        }
        self.history.epochs.append(epoch)
        self.screen.print(", ".join(f"{name} {value:.4g}" for name, value in epoch.items()))
        if self.accelerator.is_main_process:
            self.task.save_weights(self.settings.out / "last.safetensors")
            if self.history.best is epoch:
                self.task.save_weights(self.settings.out / "best.safetensors")
            self.history.write()
        self._save()

    def _stop_if_interrupted(self, interruption: Interruption) -> None:
        if interruption.signal is not None:
            self.accelerator.set_trigger()
        # A signal may reach one process before another; all of them stop at the same update.
        if self.accelerator.check_trigger():
            self._save()
            # A launcher ends all processes when one of them ends.
            self.accelerator.wait_for_everyone()
            self.screen.print(f"Stopped {self._place()}. The same command continues from there.")
            raise Interrupted(interruption.exit_status)

    def _place(self) -> str:
        training = self.training
        if training.epoch == self.epochs:
            return "after the last epoch"
        return (
            f"after {training.updates_into_epoch} of {training.updates_per_epoch} updates of epoch "
            f"{training.epoch + 1}"
        )

    def _save(self) -> None:
        # A run that has diverged keeps its last good snapshot: the mean raises.
        self.training.mean_loss()
        if self.accelerator.is_main_process:
            state = {"training": self.training.state_dict(), "history": self.history.epochs}
            snapshot.save(self.snapshot_path, state, self.circumstances)
        self.last_saved = time.monotonic()
