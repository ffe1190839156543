"""Images with their truth, read in an order that depends only on the seed and the epoch."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Subset
from torchvision.transforms.v2 import functional as F

from examples.training.errors import InputError, UnreadableFile
from examples.training.loading import Share, load
from examples.training.randomness import seed_all

# What an image shows: boxes, masks or a map, and labels.
Truth = dict[str, Tensor]
Transform = Callable[[Tensor, Truth], tuple[Tensor, Truth]]

# An image (3, height, width), its truth, and a line for each sample that could not be read.
Sample = tuple[Tensor, Truth, str]

# The same of several images, whose sizes may differ.
Batch = tuple[list[Tensor], list[Truth], list[str]]


class Split(Protocol):
    """The samples of a split of a data set."""

    def __len__(self) -> int:
        """Number of samples."""

    def read(self, index: int) -> tuple[Tensor, Truth]:
        """An image (3, height, width) of uint8, and its truth.

        Raises:
            UnreadableFile: a file of the sample cannot be read.
        """

    def kind(self, index: int) -> Hashable:
        """A batch has samples of one kind only, such as upright images."""


class TrainingSamples(Dataset[Sample]):
    """Augmented samples of an epoch, the same whenever they are read.

    A sample that cannot be read is replaced by the next one that can.

    Args:
        split: to read from.
        transform: from an image and its truth to an augmented image and its truth.
        seed: of the augmentation.
        epoch: which changes the augmentation.
    """

    def __init__(self, split: Split, transform: Transform, seed: int, epoch: int) -> None:
        self.split = split
        self.transform = transform
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Sample:
        seed_all("sample", self.seed, self.epoch, index)
        broken: list[str] = []
        for offset in range(len(self)):
            try:
                image, truth = self.split.read((index + offset) % len(self))
            except UnreadableFile as error:
                broken.append(str(error))
            else:
                return *self.transform(image, truth), "\n".join(broken)
        raise InputError(f"none of the training samples can be read; the first: {broken[0]}")


class EvaluationSamples(Dataset[Sample]):
    """Samples for evaluation. One that cannot be read has an empty image and no truth."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Sample:
        try:
            image, truth = self.split.read(index)
        except UnreadableFile as error:
            return torch.empty(3, 0, 0), {}, str(error)
        return F.to_dtype(image, torch.float32, scale=True), truth, ""


def collate(samples: list[Sample]) -> Batch:
    """Several samples as one batch."""
    images, truths, broken = zip(*samples, strict=True)
    return list(images), list(truths), [line for lines in broken for line in lines.splitlines()]


def order(split: Split, batch_size: int, batches: int, seed: int, epoch: int) -> list[list[int]]:
    """The samples of each batch of an epoch, in a random order.

    Samples that are left over at the end of the epoch are not used in it.

    Args:
        split: of the training.
        batch_size: number of samples in a batch.
        batches: number of batches in an update, over all processes.
        seed: of the order.
        epoch: which changes the order.

    Raises:
        InputError: there are too few samples for one update.
    """
    seed_all("order", seed, epoch)
    alike: dict[Hashable, list[int]] = {}
    for index in torch.randperm(len(split)).tolist():
        alike.setdefault(split.kind(index), []).append(index)
    whole = [
        batch
        for indices in alike.values()
        for batch in BatchSampler(indices, batch_size, drop_last=True)
    ]
    if len(whole) < batches:
        raise InputError(
            f"{len(split)} training images make {len(whole)} batches of batch_size={batch_size} "
            f"images of one kind, and an update needs {batches}; use a smaller batch_size"
        )
    used = len(whole) // batches * batches
    return [whole[index] for index in torch.randperm(len(whole)).tolist()[:used]]


def training_batches(
    samples: TrainingSamples, batches: list[list[int]], share: Share, first: int
) -> DataLoader[Sample]:
    """The batches of one process in the rest of an epoch.

    Args:
        samples: of the epoch.
        batches: of all processes, from ``order``.
        share: of the process.
        first: the first batch of the rest.
    """
    own = batches[first + share.process :: share.processes]
    return load(samples, share, collate, batch_sampler=own)


def evaluation_batches(split: Split, share: Share) -> DataLoader[Sample]:
    """The batches of one process, of one image each; each image belongs to one process."""
    samples = EvaluationSamples(split)
    own = range(share.process, len(samples), share.processes)
    return load(Subset(samples, own), share, collate, batch_size=1)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Opens an image; an error in the block means that the file is broken.

    Raises:
        UnreadableFile: the file is missing, truncated, no image, or not what the block expects.
    """
    try:
        with Image.open(path) as image:
            yield image
    except MemoryError:
        raise
    # Pillow's error for a truncated file, another file or a bomb depends on the format.
    except Exception as error:
        raise UnreadableFile(f"{path}: {error}") from error


def read_image(path: Path) -> Tensor:
    """An image (3, height, width) of uint8.

    Raises:
        UnreadableFile: as in ``opened``.
    """
    with opened(path) as image:
        return F.pil_to_tensor(image.convert("RGB"))


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of an image, from the head of its file.

    Raises:
        UnreadableFile: as in ``opened``.
    """
    with opened(path) as image:
        return image.height, image.width
