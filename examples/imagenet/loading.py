"""Images from their folders to batches, prepared as timm does."""

from dataclasses import dataclass
from typing import Any

from timm.data import create_transform
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder

from examples.imagenet.errors import InputError
from examples.imagenet.images import (
    EvaluationImages,
    Sample,
    TrainingBatches,
    TrainingImages,
    Transform,
    collate,
)
from examples.imagenet.interruption import leave_interruption_to_parent
from examples.imagenet.recipe import Recipe


@dataclass(frozen=True)
class Share:
    """What part of the work is one process's.

    process: which one it is.
    processes: how many there are.
    workers: processes of its own that read images.
    pin_memory: whether batches are to be copied to a GPU.
    """

    process: int = 0
    processes: int = 1
    workers: int = 0
    pin_memory: bool = False


def training_transform(recipe: Recipe, preparation: dict[str, Any]) -> Transform:
    """Random crops, flips and colours; ``preparation`` is timm's ``resolve_data_config``."""
    return create_transform(
        recipe.image_size,
        is_training=True,
        scale=recipe.crop_scale,
        hflip=recipe.horizontal_flip,
        vflip=recipe.vertical_flip,
        color_jitter=recipe.color_jitter,
        auto_augment=recipe.auto_augment,
        re_prob=recipe.random_erasing,
        re_mode="pixel",
        interpolation="random",
        mean=preparation["mean"],
        std=preparation["std"],
    )


def evaluation_transform(preparation: dict[str, Any]) -> Transform:
    """The centre of an image; ``preparation`` is timm's ``resolve_data_config``."""
    return create_transform(**preparation)


def updates_per_epoch(images: int, recipe: Recipe, share: Share) -> int:
    """How many whole updates the images are enough for.

    Raises:
        InputError: for none.
    """
    per_update = recipe.batch_size * recipe.accumulate * share.processes
    if images < per_update:
        raise InputError(
            f"{images} training images are too few for one update of batch_size="
            f"{recipe.batch_size} × accumulate={recipe.accumulate} × {share.processes} processes = "
            f"{per_update} images; use a smaller batch_size"
        )
    return images // per_update


def training_batches(
    images: TrainingImages, recipe: Recipe, share: Share, epoch: int, first_update: int
) -> DataLoader[Sample]:
    """The batches of one process from an update of an epoch on."""
    batches = TrainingBatches(
        len(images),
        batch_size=recipe.batch_size,
        updates=updates_per_epoch(len(images), recipe, share),
        per_update=recipe.accumulate,
        seed=recipe.seed,
        epoch=epoch,
        first_update=first_update,
        process=share.process,
        processes=share.processes,
    )
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=share.workers,
        pin_memory=share.pin_memory,
        collate_fn=collate,
        worker_init_fn=leave_interruption_to_parent,
    )


def evaluation_batches(
    folder: ImageFolder, preparation: dict[str, Any], batch_size: int, share: Share
) -> DataLoader[Sample]:
    """Every image once, over all processes together."""
    images = EvaluationImages(folder, evaluation_transform(preparation))
    mine = range(share.process, len(images), share.processes)
    return DataLoader(
        Subset(images, mine),
        batch_size=batch_size,
        num_workers=share.workers,
        pin_memory=share.pin_memory,
        collate_fn=collate,
        worker_init_fn=leave_interruption_to_parent,
    )
