"""Writes pictures to learn detection from: real digits on real photographs, see ``dense.scenes``.

``python -m examples.detection.composites out/composites`` writes the layout of COCO, with ten
classes, and crops/, folders of single digits on which a backbone can learn to classify.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as runs
from PIL import Image
from rich.progress import track

from examples.dense.scenes import main, scenes

CROP = 64  # side of a crop, in pixels


def write(folder: Path, counts: dict[str, int]) -> None:
    """Writes images, instances and crops of both splits, always the same.

    Args:
        folder: to write; it must not exist.
        counts: number of images in "train" and "val".
    """
    (folder / "annotations").mkdir(parents=True)
    for split, count in counts.items():
        (folder / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, scene in enumerate(track(scenes(split, count), split, count), 1):
            name = f"{number:04d}.jpg"
            picture = Image.fromarray(scene.image)
            picture.save(folder / split / name, quality=95)
            height, width = scene.ground.shape
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for digit, mask, box in zip(scene.digits, scene.masks, scene.boxes, strict=True):
                encoded = runs.encode(np.asfortranarray(mask.astype(np.uint8)))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": digit + 1,
                        "bbox": box,
                        "area": int(mask.sum()),
                        "iscrowd": 0,
                        "segmentation": encoded | {"counts": encoded["counts"].decode()},
                    }
                )
                crop = folder / "crops" / split / str(digit) / f"{len(annotations):05d}.png"
                crop.parent.mkdir(parents=True, exist_ok=True)
                _crop(picture, box).save(crop)
        instances = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": digit + 1, "name": str(digit)} for digit in range(10)],
        }
        file = folder / "annotations" / f"instances_{split}.json"
        file.write_text(json.dumps(instances))


def _crop(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """A digit and its surroundings."""
    left, top, width, height = box
    side = 1.4 * max(width, height)
    x, y = left + width / 2, top + height / 2
    corners = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    return picture.resize((CROP, CROP), Image.Resampling.BICUBIC, box=_inside(corners, picture))


def _inside(
    corners: tuple[float, float, float, float], picture: Image.Image
) -> tuple[float, float, float, float]:
    left, top, right, bottom = corners
    return max(0, left), max(0, top), min(picture.width, right), min(picture.height, bottom)


if __name__ == "__main__":
    main(__doc__ or "", write)
