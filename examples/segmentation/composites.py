"""Writes pictures to learn segmentation from: real digits on real photographs.

``python -m examples.segmentation.composites out/surfaces`` writes the layout of ADE20K, with three
classes: the two photographs and the ink of the digits. See ``dense.scenes``.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from examples.dense.scenes import GROUNDS, main, scenes
from examples.segmentation.ade import SPLITS

CLASSES = [*GROUNDS, "ink"]


def write(folder: Path, counts: dict[str, int]) -> None:
    """Writes images and maps of both splits, always the same.

    Args:
        folder: to write; it must not exist.
        counts: number of images in "train" and "val".
    """
    for split, count in counts.items():
        images, maps = (folder / part / SPLITS[split] for part in ("images", "annotations"))
        images.mkdir(parents=True)
        maps.mkdir(parents=True)
        for number, scene in enumerate(track(scenes(split, count), split, count), 1):
            labels = np.where(scene.masks.any(0), CLASSES.index("ink"), scene.ground) + 1
            Image.fromarray(scene.image).save(images / f"{number:04d}.jpg", quality=95)
            Image.fromarray(labels.astype(np.uint8)).save(maps / f"{number:04d}.png")
    rows = ["Idx\tName", *(f"{index}\t{name}" for index, name in enumerate(CLASSES, 1))]
    (folder / f"objectInfo{len(CLASSES)}.txt").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main(__doc__ or "", write)
