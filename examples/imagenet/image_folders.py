"""Writes folders of real images to train on.

``python -m examples.imagenet.image_folders digits out/digits``: 1,797 handwritten digits of 8 × 8
pixels from scikit-learn, in ten classes. ``… solar_cells out/solar_cells``: 2,624 photographs of
300 × 300 pixels of solar cells, whole or defective, from the package elpv-dataset (Buerhop-Lutz et
al., 2018; CC BY-NC-SA 4.0). A quarter of each class is for validation.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

# Images, (count, height, width) of uint8, and the name of the class of each.
Labelled = tuple[np.ndarray, list[str]]


def digits() -> Labelled:
    """Handwritten digits, ten classes."""
    data = load_digits()
    return (data.images * (255 / 16)).round().astype(np.uint8), [str(c) for c in data.target]


def solar_cells() -> Labelled:
    """Electroluminescence images of solar cells, whole or defective in the opinion of experts.

    Raises:
        ValueError: the package of the images is not installed.
    """
    try:
        from elpv_dataset.utils import load_dataset
    except ImportError as error:
        raise ValueError("the images come with a package: pip install elpv-dataset") from error
    images, probabilities, _ = load_dataset()
    return images, ["defective" if p > 0.5 else "whole" for p in probabilities]


SOURCES: dict[str, Callable[[], Labelled]] = {"digits": digits, "solar_cells": solar_cells}


def write(source: str, folder: Path) -> None:
    """Writes ``folder/train/CLASS/`` and ``folder/val/CLASS/``; the split is always the same.

    Raises:
        ValueError: ``folder`` exists, or the images are not installed.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists already; remove it or give another folder")
    images, classes = SOURCES[source]()
    splits: Any = train_test_split(
        range(len(classes)), test_size=0.25, random_state=0, stratify=classes
    )
    for split, rows in zip(("train", "val"), splits, strict=True):
        for row in track(rows, f"{source}: {split}"):
            path = folder / split / classes[row] / f"{row:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[row]).save(path)


def main() -> None:
    """Writes the images, or prints what is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", choices=SOURCES)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    try:
        write(arguments.source, arguments.folder)
    except ValueError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
