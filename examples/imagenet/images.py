"""Folders of images: one folder a class, under train/ and val/."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from examples.training.errors import InputError, UnreadableFile
from examples.training.randomness import seed_all

Transform = Callable[[Image.Image], Tensor]

# The label of an image that could not be read.
NO_LABEL = -1

# An image (channels, height, width), its label, and a line for each file that could not be read
# before it.
Sample = tuple[Tensor, int, str]


@dataclass(frozen=True)
class ImageFolders:
    """The two splits of a data set, with the same classes."""

    train: ImageFolder
    val: ImageFolder

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by label."""
        return self.train.classes


def open_split(data: Path, split: str) -> ImageFolder:
    """Finds the images of ``data/split/class/``, without opening any.

    Raises:
        InputError: the folder does not exist, has no classes, or a class has no images.
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
        InputError: as in ``open_split``, or the classes are too few or differ between splits.
    """
    folders = ImageFolders(open_split(data, "train"), open_split(data, "val"))
    if len(folders.classes) < 2:
        raise InputError(f"{data}/train must have at least two classes, got {folders.classes}")
    differing = set(folders.train.classes) ^ set(folders.val.classes)
    if differing:
        raise InputError(
            f"{data}/train and {data}/val must have the same classes; only one of them has "
            f"{', '.join(sorted(differing))}"
        )
    return folders


class TrainingImages(Dataset[Sample]):
    """Augmented images of an epoch, the same whenever they are read.

    An image that cannot be read is replaced by the next one that can.

    Args:
        folder: of the images.
        transform: from an image to a tensor.
        seed: of the augmentation.
        epoch: which changes the augmentation.
    """

    def __init__(self, folder: ImageFolder, transform: Transform, seed: int, epoch: int) -> None:
        self.folder = folder
        self.transform = transform
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Sample:
        seed_all("image", self.seed, self.epoch, index)
        unreadable: list[str] = []
        for offset in range(len(self)):
            path, label = self.folder.samples[(index + offset) % len(self)]
            try:
                image = _read(path)
            except UnreadableFile as error:
                unreadable.append(str(error))
            else:
                return self.transform(image), label, "\n".join(unreadable)
        raise InputError(
            f"none of the images in {self.folder.root} can be read; the first: {unreadable[0]}"
        )


class EvaluationImages(Dataset[Sample]):
    """Images for evaluation. One that cannot be read is all zeros, with the label ``NO_LABEL``."""

    def __init__(self, folder: ImageFolder, transform: Transform) -> None:
        self.folder = folder
        self.transform = transform

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.folder.samples[index]
        try:
            return self.transform(_read(path)), label, ""
        except UnreadableFile as error:
            blank = Image.new("RGB", (1, 1))
            return torch.zeros_like(self.transform(blank)), NO_LABEL, str(error)


def collate(samples: list[Sample]) -> tuple[Tensor, Tensor, list[str]]:
    """A batch of images, their labels, and a line for each file that could not be read."""
    images, labels, unreadable = zip(*samples, strict=True)
    lines = [line for lines in unreadable for line in lines.splitlines()]
    return torch.stack(images), torch.tensor(labels), lines


def _read(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except MemoryError:
        raise
    # Pillow's error for a truncated file, another file or a bomb depends on the format.
    except Exception as error:
        raise UnreadableFile(f"{path}: {error}") from error
