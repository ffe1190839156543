"""Batches of images from folders, prepared by timm's transforms."""

from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from timm.data import create_transform
from torch.utils.data import BatchSampler, DataLoader, Subset
from torchvision.datasets import ImageFolder

from examples.imagenet.images import EvaluationImages, Sample, TrainingImages, Transform, collate
from examples.imagenet.recipe import Recipe
from examples.training.errors import InputError
from examples.training.loading import Share, load
from examples.training.randomness import seed_all


def training_transform(recipe: Recipe, preparation: dict[str, Any]) -> Transform:
    """Random crops, flips and colours, with timm's ``resolve_data_config`` as ``preparation``."""
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
    """The centre of an image, with timm's ``resolve_data_config`` as ``preparation``."""
    return create_transform(**preparation)


def images_per_update(recipe: Recipe, share: Share) -> int:
    """Number of images in an update, over all processes."""
    return recipe.batch_size * recipe.accumulate * share.processes


def updates_per_epoch(images: int, recipe: Recipe, share: Share) -> int:
    """Number of whole updates in an epoch.

    Raises:
        InputError: there are too few images for one.
    """
    per_update = images_per_update(recipe, share)
    if images < per_update:
        raise InputError(
            f"{images} training images are too few for one update of batch_size="
            f"{recipe.batch_size} × accumulate={recipe.accumulate} × {share.processes} processes = "
            f"{per_update} images; use a smaller batch_size"
        )
    return images // per_update


def training_batches(
    images: TrainingImages, recipe: Recipe, share: Share, first_update: int
) -> DataLoader[Sample]:
    """The batches of one process in the rest of an epoch.

    All processes together take the same images for an update, whatever their number. Images that
    are left over at the end of the epoch are not used in it.

    Args:
        images: of the epoch.
        recipe: of the training.
        share: of the process.
        first_update: the first update of the rest.
    """
    seed_all("order", recipe.seed, images.epoch)
    used = updates_per_epoch(len(images), recipe, share) * images_per_update(recipe, share)
    order = torch.randperm(len(images))[:used].tolist()
    batches = BatchSampler(order, recipe.batch_size, drop_last=True)
    own = BatchSamplerShard(batches, share.processes, share.process)
    rest = SkipBatchSampler(own, first_update * recipe.accumulate)
    return load(images, share, collate, batch_sampler=rest)


def evaluation_batches(
    folder: ImageFolder, preparation: dict[str, Any], batch_size: int, share: Share
) -> DataLoader[Sample]:
    """The batches of one process; each image belongs to one process."""
    images = EvaluationImages(folder, evaluation_transform(preparation))
    own = range(share.process, len(images), share.processes)
    return load(Subset(images, own), share, collate, batch_size=batch_size)
