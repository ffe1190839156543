"""Real handwritten digits on real photographs, with exact boxes, masks and label maps.

The 1,797 digits and the two photographs, a temple and a flower, come with scikit-learn. A quarter
of the digits and the right third of each photograph are for validation only.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split

HEIGHT, WIDTH = 160, 224
SMALLEST, LARGEST = 28, 72  # sides of a digit, in pixels
MOST = 4  # digits in a scene
GROUNDS = ["temple", "flower"]
COUNTS = {"train": 800, "val": 160}
VALIDATION = 1 / 3  # of the width of a photograph

# Ink that covers at least this much of a pixel belongs to the mask.
OPAQUE = 0.4


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it.

    image: (height, width, 3) of uint8.
    ground: (height, width), the photograph behind each pixel, as an index of ``GROUNDS``.
    digits: the class of each digit.
    masks: (digits, height, width), where the ink of each is seen.
    """

    image: np.ndarray
    ground: np.ndarray
    digits: list[int]
    masks: np.ndarray

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Left, top, width and height of each digit, in pixels."""
        boxes = []
        for mask in self.masks:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            left, top = int(columns[0]), int(rows[0])
            boxes.append((left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1))
        return boxes


def scenes(split: str, count: int) -> Iterator[Scene]:
    """Scenes of a split, always the same.

    Args:
        split: "train" or "val".
        count: number of scenes.
    """
    rng = np.random.default_rng([count, split == "val"])
    data = load_digits()
    rows = train_test_split(
        range(len(data.target)), test_size=0.25, random_state=0, stratify=data.target
    )[split == "val"]
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    for _ in range(count):
        ground = _sides(rng)
        crops = [_crop(photograph, split, rng) for photograph in photographs]
        image = np.where(ground[..., None] == 1, crops[1], crops[0]).astype(np.float32)
        digits: list[int] = []
        masks: list[np.ndarray] = []
        for row in rng.choice(rows, rng.integers(1, MOST + 1), replace=False):
            ink = _ink(data.images[row], rng)
            # Digits do not touch.
            taken = np.any([mask for mask in masks], 0) if masks else np.zeros_like(ink, bool)
            if taken[_neighbourhood(ink)].any():
                continue
            image += ink[..., None] * (_colour(image, ink, rng) - image)
            digits.append(int(data.target[row]))
            masks.append(ink >= OPAQUE)
        yield Scene(image.round().astype(np.uint8), ground, digits, np.stack(masks))


def main(description: str, write: Callable[[Path, dict[str, int]], None]) -> None:
    """The command that writes scenes of both splits in the layout of a data set.

    Args:
        description: what the command does.
        write: gets a folder, which does not exist, and the number of scenes of each split.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    for split, count in COUNTS.items():
        parser.add_argument(f"--{split}", type=int, default=count, help="number of images")
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.exit(1, f"{arguments.folder} exists already; remove it or give another folder\n")
    write(arguments.folder, {split: getattr(arguments, split) for split in COUNTS})


def _sides(rng: np.random.Generator) -> np.ndarray:
    """The two sides of a random line through the middle part of the picture."""
    angle = rng.uniform(0, 2 * np.pi)
    x, y = rng.uniform(0.3, 0.7, 2) * (WIDTH, HEIGHT)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return ((columns - x) * np.cos(angle) + (rows - y) * np.sin(angle) > 0).astype(np.uint8)


def _crop(photograph: Image.Image, split: str, rng: np.random.Generator) -> np.ndarray:
    """A random part of the split's part of a photograph, at a random scale."""
    border = round(photograph.width * (1 - VALIDATION))
    first, last = (0, border) if split == "train" else (border, photograph.width)
    height = int(rng.uniform(0.5, 1) * min(photograph.height, (last - first) * HEIGHT / WIDTH))
    width = height * WIDTH // HEIGHT
    left = int(rng.integers(first, last - width + 1))
    top = int(rng.integers(photograph.height - height + 1))
    part = photograph.crop((left, top, left + width, top + height))
    return np.asarray(part.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def _ink(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How much of each pixel of the picture a digit covers, from 0 to 1."""
    side = int(rng.integers(SMALLEST, LARGEST + 1))
    # The margin lets the ink end softly at the borders of the digit too.
    pixels = np.pad(digit * (255 / 16), 1).astype(np.uint8)
    large = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    # The blur rounds off the steps of the few pixels of a side.
    soft = np.asarray(large.filter(ImageFilter.GaussianBlur(side / 40)), np.float32) / 255
    ink = np.zeros((HEIGHT, WIDTH), np.float32)
    top, left = rng.integers(HEIGHT - side + 1), rng.integers(WIDTH - side + 1)
    # A steep slope makes the ink solid, with edges of a pixel or two.
    ink[top : top + side, left : left + side] = np.clip((soft - 0.35) * 4 + 0.5, 0, 1)
    return ink


def _neighbourhood(ink: np.ndarray) -> tuple[slice, slice]:
    """The box of the ink and a few pixels around it."""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return (
        slice(max(0, int(rows[0]) - 3), int(rows[-1]) + 4),
        slice(max(0, int(columns[0]) - 3), int(columns[-1]) + 4),
    )


def _colour(image: np.ndarray, ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random colour, light on a dark ground and dark on a light one."""
    under = np.average(image, axis=(0, 1), weights=ink)
    return np.where(under.mean() > 128, rng.uniform(0, 60, 3), rng.uniform(195, 255, 3))
