"""Folders of images: one folder a class, under train/ and val/."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.datasets import ImageFolder

from examples.imagenet.errors import InputError
from examples.imagenet.randomness import seed_all

Transform = Callable[[Image.Image], Tensor]

# The label of an image that could not be read.
NO_LABEL = -1

# An image (channels, height, width), its label, and the files that could not be read on the way to
# it, one a line.
Sample = tuple[Tensor, int, str]


class UnreadableImage(InputError):
    """A file that is cut off, or no image; the message begins with its path."""


@dataclass(frozen=True)
class ImageFolders:
    """The two splits of a data set, whose classes are the same."""

    train: ImageFolder
    val: ImageFolder

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by label."""
        return self.train.classes


def open_split(data: Path, split: str) -> ImageFolder:
    """Finds the images of ``data/split/class/``, without opening any.

    Raises:
        InputError: there is no such folder, it has no classes, or one of them no image.
    """
    folder = data / split
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {folder}; expected {data}/train and {data}/val with one folder "
            "for each class"
        )
    try:
        return ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: {error}") from error


def open_folders(data: Path) -> ImageFolders:
    """Both splits of ``data``.

    Raises:
        InputError: as ``open_split`` does, or the splits have different classes.
    """
    folders = ImageFolders(open_split(data, "train"), open_split(data, "val"))
    if len(folders.classes) < 2:
        raise InputError(f"{data}/train must have two classes at least, got {folders.classes}")
    differing = set(folders.train.classes) ^ set(folders.val.classes)
    if differing:
        raise InputError(
            f"{data}/train and {data}/val must have the same classes; only one of them has "
            f"{', '.join(sorted(differing))}"
        )
    return folders


class TrainingImages(Dataset[Sample]):
    """Augmented images by (index, epoch), the same at every reading.

    In place of an image that cannot be read stands the next one that can.
    """

    def __init__(self, folder: ImageFolder, transform: Transform, seed: int) -> None:
        self.folder = folder
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        index, epoch = key
        seed_all("image", self.seed, epoch, index)
        unreadable: list[str] = []
        for offset in range(len(self)):
            path, label = self.folder.samples[(index + offset) % len(self)]
            try:
                image = _read(path)
            except UnreadableImage as error:
                unreadable.append(str(error))
            else:
                return self.transform(image), label, "\n".join(unreadable)
        raise InputError(
            f"none of the images in {self.folder.root} can be read; the first: {unreadable[0]}"
        )


class EvaluationImages(Dataset[Sample]):
    """Images by index; one that cannot be read is all 0 and has the label ``NO_LABEL``."""

    def __init__(self, folder: ImageFolder, transform: Transform) -> None:
        self.folder = folder
        self.transform = transform

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.folder.samples[index]
        try:
            return self.transform(_read(path)), label, ""
        except UnreadableImage as error:
            blank = Image.new("RGB", (1, 1))
            return torch.zeros_like(self.transform(blank)), NO_LABEL, str(error)


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """The rest of an epoch for one of several processes, in batches of (index, epoch).

    All processes together take the same images for an update, whatever their number; the images
    that are left over at the end of an epoch wait for another.

    Args:
        images: number of them.
        batch_size: images in a batch.
        updates: in the epoch.
        per_update: batches of each process in an update.
        seed: of the order.
        epoch: which one it is.
        first_update: where in the epoch to begin.
        process: which one this is.
        processes: how many there are.
    """

    def __init__(
        self,
        images: int,
        *,
        batch_size: int,
        updates: int,
        per_update: int,
        seed: int,
        epoch: int,
        first_update: int,
        process: int,
        processes: int,
    ) -> None:
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        stride = per_update * processes
        self.batches = [
            update * stride + step * processes + process
            for update in range(first_update, updates)
            for step in range(per_update)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        seed_all("order", self.seed, self.epoch)
        order = torch.randperm(self.images).split(self.batch_size)
        for batch in self.batches:
            yield [(index, self.epoch) for index in order[batch].tolist()]


def collate(samples: list[Sample]) -> tuple[Tensor, Tensor, list[str]]:
    """A batch of images, their labels, and the files that could not be read."""
    images, labels, unreadable = zip(*samples, strict=True)
    lines = [line for lines in unreadable for line in lines.splitlines()]
    return torch.stack(images), torch.tensor(labels), lines


def _read(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except MemoryError:
        raise
    # What Pillow raises for a file that is cut off, no image or a bomb depends on its format.
    except Exception as error:
        raise UnreadableImage(f"{path}: {error}") from error
