"""A training from its first epoch, or from where it was stopped, to its last."""

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from timm.data import resolve_model_data_config

from examples.imagenet import checkpoint, loading, snapshot
from examples.imagenet.errors import InputError
from examples.imagenet.evaluation import evaluate
from examples.imagenet.history import Epoch, History
from examples.imagenet.images import ImageFolders, TrainingImages
from examples.imagenet.interruption import Interruption, noticing_interruption
from examples.imagenet.randomness import seed_all
from examples.imagenet.recipe import Recipe
from examples.imagenet.screen import Bar, Screen
from examples.imagenet.training import Training

# How many updates pass between two looks at the loss, or at the other processes' signals; each
# look makes a GPU wait.
LOOK_EVERY = 10


class Interrupted(Exception):
    """The run was asked to stop, and has saved all it did.

    Args:
        exit_status: what the program should end with.
    """

    def __init__(self, exit_status: int) -> None:
        super().__init__(exit_status)
        self.exit_status = exit_status


@dataclass(frozen=True)
class Settings:
    """How a run is carried out, which does not change what comes out but for rounding.

    Args:
        out: folder of what the run writes.
        workers: processes that read images, for each process that trains.
        channels_last: keep channels adjacent in memory.
        grad_checkpointing: compute blocks again in the backward pass, for memory.
        save_minutes: between two snapshots; there is also one after every epoch.
    """

    out: Path
    workers: int = min(8, os.cpu_count() or 1)
    channels_last: bool = False
    grad_checkpointing: bool = False
    save_minutes: float = 10.0


def fit(
    recipe: Recipe,
    folders: ImageFolders,
    settings: Settings,
    accelerator: Accelerator,
    screen: Screen,
) -> Epoch:
    """Trains, and returns the best epoch.

    In ``settings.out`` are then best.safetensors and last.safetensors, metrics.csv, curves.png and
    TensorBoard's events, and training.pt, from which an interrupted run goes on.

    Raises:
        Interrupted: by a signal, after a snapshot.
        InputError: recipe, images and what is in ``settings.out`` do not fit.
    """
    with noticing_interruption(screen.print) as interruption:
        run = _Run(recipe, folders, settings, accelerator, screen, interruption)
        run.resume()
        run.finish()
    best = run.history.best
    assert best is not None
    return best


class _Run:
    """What ``fit`` does, piece by piece."""

    def __init__(
        self,
        recipe: Recipe,
        folders: ImageFolders,
        settings: Settings,
        accelerator: Accelerator,
        screen: Screen,
        interruption: Interruption,
    ) -> None:
        self.recipe = recipe
        self.settings = settings
        self.accelerator = accelerator
        self.screen = screen
        self.interruption = interruption
        self.share = loading.Share(
            accelerator.process_index,
            accelerator.num_processes,
            settings.workers,
            pin_memory=accelerator.device.type == "cuda",
        )
        options: dict[str, Any] = {**recipe.model_options, "num_classes": len(folders.classes)}
        if recipe.drop_path:
            options["drop_path_rate"] = recipe.drop_path
        model = _create(recipe, options)
        if settings.grad_checkpointing:
            model.set_grad_checkpointing()
        self.preparation = resolve_model_data_config(model, {"img_size": recipe.image_size})
        self.classifier = checkpoint.Classifier(
            recipe.model, options, self.preparation, folders.classes
        )
        self.images = TrainingImages(
            folders.train, loading.training_transform(recipe, self.preparation), recipe.seed
        )
        self.val_batches = loading.evaluation_batches(
            folders.val, self.preparation, recipe.batch_size, self.share
        )
        self.training = Training(
            recipe,
            model,
            len(folders.classes),
            loading.updates_per_epoch(len(self.images), recipe, self.share),
            accelerator,
            settings.channels_last,
        )
        self.history = History(settings.out)
        self.circumstances = {
            **asdict(recipe),
            "training images": len(self.images),
            "classes": folders.classes,
            "processes": accelerator.num_processes,
            "precision": accelerator.mixed_precision,
        }
        self.last_saved = time.monotonic()

    @property
    def snapshot_path(self) -> Path:
        return self.settings.out / "training.pt"

    def resume(self) -> None:
        """Goes to where an earlier run was stopped, if there was one."""
        if self.snapshot_path.exists():
            snapshot.resume(self.snapshot_path, self.training, self.history, self.circumstances)
            self.screen.print(f"{self.snapshot_path}: going on {self._place()}")
        updates = torch.tensor([self.training.updates], device=self.accelerator.device)
        if len(set(self.accelerator.gather(updates).tolist())) > 1:
            raise InputError(
                f"not all processes found {self.snapshot_path}; --out must be one folder that the "
                "machines share"
            )

    def finish(self) -> None:
        """All epochs that are left."""
        training = self.training
        total = self.recipe.epochs * training.updates_per_epoch
        decay = self.recipe.ema_decay
        if decay is not None and total * (1 - decay) < 3:
            self.screen.print(
                f"ema_decay={decay} looks back over {1 / (1 - decay):,.0f} updates and the run has "
                f"{total:,}: what is evaluated and kept will hold much of the initial weights; "
                "--ema_decay null takes the model itself"
            )
        with self.screen.bar("training", total, "updates", training.updates) as bar:
            while training.epoch < self.recipe.epochs:
                self._close_epoch(self._train(training.epoch, bar))
        if self.accelerator.is_main_process:
            self.history.draw()

    def _train(self, epoch: int, bar: Bar) -> float:
        """The rest of an epoch; returns images per second."""
        training, recipe = self.training, self.recipe
        first = training.updates_into_epoch
        reader = iter(
            loading.training_batches(self.images, recipe, self.share, epoch, first_update=first)
        )
        self.screen.unreadable = 0
        per_update = recipe.batch_size * recipe.accumulate * self.share.processes
        before, start = training.updates, time.perf_counter()

        def images_per_second() -> float:
            return (training.updates - before) * per_update / (time.perf_counter() - start)

        # Each update takes as many batches from the one reader.
        for batches in zip(*[reader] * recipe.accumulate, strict=True):
            for *_, unreadable in batches:
                self.screen.note_unreadable(unreadable)
            training.update([(images, labels) for images, labels, _ in batches])
            description = None
            if training.updates % LOOK_EVERY == 0:
                loss = training.mean_loss()
                description = (
                    f"epoch {epoch + 1} of {recipe.epochs}, loss {loss:.3f}, "
                    f"{images_per_second():.0f} images/s"
                )
            bar.advance(1, description)
            if training.updates_into_epoch:
                self._save_in_epoch()
        # Reading it waits for a GPU to finish.
        training.mean_loss()
        return images_per_second()

    def _close_epoch(self, images_per_second: float) -> None:
        """Evaluates, notes the epoch and keeps the weights."""
        training = self.training
        unreadable = torch.tensor(self.screen.unreadable, device=self.accelerator.device)
        unreadable = self.accelerator.reduce(unreadable, "sum")
        train_loss = training.mean_loss()
        training.share_buffers()
        with self.screen.bar("validation", len(self.val_batches), "batches") as bar:
            scores = evaluate(
                training.evaluated,
                self.val_batches,
                training.num_classes,
                self.accelerator,
                note_unreadable=self.screen.note_unreadable,
                advance=bar.advance,
            )
        epoch = Epoch(
            epoch=training.epoch,
            updates=training.updates,
            lr=training.learning_rate,
            train_loss=train_loss,
            val_loss=scores.loss,
            top1=scores.top1,
            top5=scores.top5,
            images_per_second=images_per_second,
            unreadable=int(unreadable),
        )
        self.history.epochs.append(epoch)
        self.screen.print(
            f"epoch {epoch.epoch}: training loss {train_loss:.4f}, validation loss "
            f"{scores.loss:.4f}, top-1 {scores.top1:.2%}, top-5 {scores.top5:.2%}, "
            f"{images_per_second:.0f} images a second"
        )
        if self.accelerator.is_main_process:
            weights = training.evaluated.state_dict()
            checkpoint.save(self.settings.out / "last.safetensors", self.classifier, weights)
            if self.history.best is epoch:
                checkpoint.save(self.settings.out / "best.safetensors", self.classifier, weights)
            self.history.write()
        self._save()
        self._stop_if_interrupted()

    def _save_in_epoch(self) -> None:
        alone = self.accelerator.num_processes == 1
        if not alone and self.training.updates % LOOK_EVERY:
            return
        self._stop_if_interrupted()
        if time.monotonic() - self.last_saved > 60 * self.settings.save_minutes:
            self._save()

    def _stop_if_interrupted(self) -> None:
        if self.interruption.signal is not None:
            self.accelerator.set_trigger()
        # One process may have been told before another; all of them stop at the same update.
        if self.accelerator.check_trigger():
            self._save()
            # A launcher ends all processes when it sees one end.
            self.accelerator.wait_for_everyone()
            self.screen.print(f"Stopped {self._place()}. The same command goes on from there.")
            raise Interrupted(self.interruption.exit_status)

    def _place(self) -> str:
        training = self.training
        if training.epoch == self.recipe.epochs:
            return "after the last epoch"
        return (
            f"after {training.updates_into_epoch} of {training.updates_per_epoch} updates of epoch "
            f"{training.epoch + 1}"
        )

    def _save(self) -> None:
        # A run that has diverged keeps its last good snapshot.
        self.training.mean_loss()
        if self.accelerator.is_main_process:
            snapshot.save(self.snapshot_path, self.training, self.history, self.circumstances)
        self.last_saved = time.monotonic()


def _create(recipe: Recipe, options: dict[str, Any]) -> Any:
    if not timm.is_model(recipe.model):
        raise InputError(f"timm has no model {recipe.model!r}; timm.list_models() lists them")
    seed_all("model", recipe.seed)
    try:
        return timm.create_model(recipe.model, **options)
    except TypeError as error:
        raise InputError(
            f"{recipe.model} cannot be made with {options}: {error}; --drop_path 0 leaves "
            "drop_path_rate out"
        ) from error
