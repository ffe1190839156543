"""The training of a classifier, from a recipe and folders of images to weights."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from timm.data import resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from examples.imagenet import checkpoint, loading
from examples.imagenet.evaluate import score
from examples.imagenet.images import ImageFolders, TrainingImages
from examples.imagenet.loss import Batch, ClassificationLoss
from examples.imagenet.recipe import Recipe
from examples.training.errors import InputError
from examples.training.history import Epoch, History, Panel
from examples.training.loading import Share
from examples.training.loop import Loop, Settings
from examples.training.randomness import seed_all
from examples.training.screen import Screen
from examples.training.state import Training

PANELS = (
    Panel("cross-entropy in nats", {"train_loss": "training", "val_loss": "validation"}),
    Panel("accuracy on the validation images", {"top1": "top-1", "top5": "top-5"}, percent=True),
)


def fit(
    recipe: Recipe,
    folders: ImageFolders,
    settings: Settings,
    accelerator: Accelerator,
    screen: Screen,
) -> Epoch:
    """Trains a classifier as ``training.loop.Loop`` does, and returns the best epoch.

    Raises:
        Interrupted: by a signal, after a snapshot.
        InputError: the recipe, the images and the files in ``settings.out`` do not fit together.
    """
    options: dict[str, Any] = {**recipe.model_options, "num_classes": len(folders.classes)}
    if recipe.drop_path:
        options["drop_path_rate"] = recipe.drop_path
    model = _create(recipe, options)
    if settings.grad_checkpointing:
        model.set_grad_checkpointing()
    preparation = resolve_model_data_config(model, {"img_size": recipe.image_size})
    classifier = checkpoint.Classifier(recipe.model, options, preparation, folders.classes)

    share = Share.of(accelerator, settings.workers)
    updates = loading.updates_per_epoch(len(folders.train), recipe, share)
    _warn_of_long_average(recipe, updates, screen)
    num_classes = len(folders.classes)
    training = start(recipe, model, num_classes, updates, accelerator, settings.channels_last)
    loop = Loop(
        _Classification(recipe, classifier, folders, training, share, screen),
        training,
        History(settings.out, "top1", PANELS),
        recipe=recipe,
        data={"training images": len(folders.train), "classes": folders.classes},
        settings=settings,
        screen=screen,
    )
    return loop.run()


def start(
    recipe: Recipe,
    model: nn.Module,
    num_classes: int,
    updates_per_epoch: int,
    accelerator: Accelerator,
    channels_last: bool = False,
) -> Training:
    """A training before its first update, with timm's AdamW and cosine schedule.

    Args:
        recipe: of the training.
        model: to train; it is moved to the accelerator's device.
        num_classes: number of classes of the labels.
        updates_per_epoch: as in ``loading.updates_per_epoch``.
        accelerator: with the recipe's gradient accumulation.
        channels_last: whether images and convolutions keep their channels adjacent in memory.
    """
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(accelerator.device).to(memory_format=memory_format)
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=recipe.lr, weight_decay=recipe.weight_decay
    )
    schedule, _ = create_scheduler_v2(
        optimizer,
        num_epochs=recipe.epochs,
        min_lr=recipe.min_lr,
        warmup_lr=recipe.warmup_lr,
        warmup_epochs=recipe.warmup_epochs,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    return Training(
        model,
        ClassificationLoss(recipe, num_classes, accelerator.device, memory_format),
        optimizer,
        schedule,
        accelerator,
        updates_per_epoch=updates_per_epoch,
        seed=recipe.seed,
        clip_grad=recipe.clip_grad,
        ema_decay=recipe.ema_decay,
    )


class _Classification:
    """The task of the loop; see ``training.loop.Task``."""

    samples = "images"

    def __init__(
        self,
        recipe: Recipe,
        classifier: checkpoint.Classifier,
        folders: ImageFolders,
        training: Training,
        share: Share,
        screen: Screen,
    ) -> None:
        self.recipe = recipe
        self.classifier = classifier
        self.folders = folders
        self.training = training
        self.share = share
        self.screen = screen
        self.samples_per_update = loading.images_per_update(recipe, share)
        preparation = classifier.preparation
        self.transform = loading.training_transform(recipe, preparation)
        self.val_batches = loading.evaluation_batches(
            folders.val, preparation, recipe.batch_size, share
        )

    def batches(self, epoch: int, first_update: int) -> Iterator[Sequence[Batch]]:
        images = TrainingImages(self.folders.train, self.transform, self.recipe.seed, epoch)
        batches = iter(loading.training_batches(images, self.recipe, self.share, first_update))
        # Each update takes as many batches from the one iterator.
        for update in zip(*[batches] * self.recipe.accumulate, strict=True):
            for *_, unreadable in update:
                self.screen.note_unreadable(unreadable)
            yield [(images, labels) for images, labels, _ in update]

    def evaluate(self) -> dict[str, float]:
        training = self.training
        num_classes = len(self.folders.classes)
        scores = score(
            training.evaluated, self.val_batches, num_classes, training.accelerator, self.screen
        )
        return {"val_loss": scores.loss, "top1": scores.top1, "top5": scores.top5}

    def save_weights(self, path: Path) -> None:
        checkpoint.save(path, self.classifier, self.training.evaluated.state_dict())


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


def _warn_of_long_average(recipe: Recipe, updates_per_epoch: int, screen: Screen) -> None:
    decay, updates = recipe.ema_decay, recipe.epochs * updates_per_epoch
    if decay is not None and updates * (1 - decay) < 3:
        screen.print(
            f"ema_decay={decay} averages over {1 / (1 - decay):,.0f} updates and the run has "
            f"{updates:,}: the evaluated and saved weights will be close to the initial ones; "
            "--ema_decay null evaluates and saves the model itself"
        )
