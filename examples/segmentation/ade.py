"""Data sets in the layout of ADE20K: images, and maps of labels of the same names."""

import csv
from pathlib import Path

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from examples.dense.problem import Data
from examples.dense.samples import Truth, opened, read_image, size_of
from examples.training.errors import InputError, UnreadableFile
from examples.training.screen import Screen

# Of pixels without a class, after classes are counted from 0.
IGNORED = 255

SPLITS = {"train": "training", "val": "validation"}


class AdeSplit:
    """The images of a split and their maps of labels.

    Args:
        folder: of the data set.
        split: "training" or "validation".
        classes: number of classes.

    Raises:
        InputError: there are no images.
    """

    def __init__(self, folder: Path, split: str, classes: int) -> None:
        self.classes = classes
        self.maps = folder / "annotations" / split
        images = folder / "images" / split
        suffixes = {".jpg", ".jpeg", ".png"}
        found = images.iterdir() if images.is_dir() else []
        self.images = sorted(path for path in found if path.suffix.lower() in suffixes)
        if not self.images:
            raise InputError(
                f"there are no images in {images}; expected {folder}/images/{split}/NAME.jpg and "
                f"{folder}/annotations/{split}/NAME.png"
            )

    def __len__(self) -> int:
        return len(self.images)

    def kind(self, index: int) -> None:
        """All images are of one kind: training cuts them to one size."""

    def read(self, index: int) -> tuple[Tensor, Truth]:
        """An image (3, height, width) of uint8 and its map.

        Returns:
            The image, and ``labels`` (height, width), classes from 0 or 255 where there is none.

        Raises:
            UnreadableFile: a file is missing, truncated or of another size, or a label is too
                large.
        """
        image = read_image(self.images[index])
        path = self._map(index)
        numbers = _read_map(path)
        if numbers.shape != image.shape[1:]:
            raise UnreadableFile(_other_size(path, tuple(numbers.shape), tuple(image.shape[1:])))
        if int(numbers.max()) > self.classes:
            raise UnreadableFile(
                f"{path}: label {int(numbers.max())} is above the number of classes, {self.classes}"
            )
        # 0 is no class, and becomes 255; the others count from 1.
        return image, {"labels": tv_tensors.Mask(numbers - 1)}

    def broken(self, screen: Screen) -> list[str]:
        """Takes out images that cannot be used; returns a line for each.

        Files are not decoded here: a truncated one is found when it is read.

        Args:
            screen: for a bar.
        """
        problems, usable = [], []
        with screen.bar(f"checking {self.maps.name}", len(self), "images") as advance:
            for index, path in enumerate(self.images):
                advance()
                try:
                    size, size_of_map = size_of(path), size_of(self._map(index))
                except UnreadableFile as error:
                    problems.append(str(error))
                    continue
                if size != size_of_map:
                    problems.append(_other_size(self._map(index), size_of_map, size))
                    continue
                usable.append(path)
        self.images = usable
        return problems

    def _map(self, index: int) -> Path:
        return self.maps / f"{self.images[index].stem}.png"


def open_data(folder: Path, screen: Screen) -> Data:
    """The training and validation images of ``folder``, checked.

    Args:
        folder: with images/ and annotations/, which have training/ and validation/, and
            objectInfo*.txt, a table with the columns Idx and Name.
        screen: gets a line for each broken image.

    Raises:
        InputError: files are missing, or an image is broken and is not to be skipped.
    """
    classes = _classes(folder)
    train, val = (AdeSplit(folder, split, len(classes)) for split in SPLITS.values())
    for split in (train, val):
        screen.note_unreadable(split.broken(screen))
        if not len(split):
            raise InputError(f"no image of {split.maps} can be used")
    return Data(train, val, classes)


def _classes(folder: Path) -> list[str]:
    found = sorted(folder.glob("objectInfo*.txt"))
    if len(found) != 1:
        raise InputError(
            f"expected one file {folder}/objectInfo*.txt with the names of the classes, found "
            f"{', '.join(path.name for path in found) or 'none'}"
        )
    rows = list(csv.DictReader(found[0].read_text().splitlines(), delimiter="\t"))
    try:
        names = {int(row["Idx"]): row["Name"].strip() for row in rows}
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{found[0]} must have the columns Idx and Name, with tabs between them ({error!r})"
        ) from error
    if sorted(names) != list(range(1, len(names) + 1)) or not 2 <= len(names) < IGNORED:
        raise InputError(
            f"{found[0]} must number its classes 1, 2 and so on, up to 254; got {sorted(names)}"
        )
    return [names[number] for number in sorted(names)]


def _read_map(path: Path) -> Tensor:
    """Labels (height, width) of uint8."""
    with opened(path) as image:
        # The numbers of a palette are labels too, and their colours are not.
        if image.mode not in ("L", "P"):
            raise ValueError(f"labels must be numbers of 8 bits, got an image of mode {image.mode}")
        return F.pil_to_tensor(image)[0]


def _other_size(path: Path, size: tuple[int, ...], expected: tuple[int, ...]) -> str:
    return f"{path}: {size[0]} × {size[1]} pixels, and its image has {expected[0]} × {expected[1]}"


def has_labels(labels: Tensor) -> bool:
    """Whether any pixel has a class."""
    return bool(torch.any(labels != IGNORED))
