"""Pictures of what a model finds, beside the truth."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from examples.training.atomic import replacing

HEIGHT = 240  # of each image in a comparison, in pixels


def palette(count: int) -> list[tuple[int, int, int]]:
    """Bright colours for ``count`` classes; neighbours differ."""
    golden = (5**0.5 - 1) / 2
    bright = [colorsys.hls_to_rgb(index * golden % 1, 0.55, 0.9) for index in range(count)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in bright]


def write(path: Path, image: Tensor) -> None:
    """Writes an image (3, height, width) of uint8, whole or not at all."""
    with replacing(path) as partial:
        F.to_pil_image(image).save(partial)


def compare(path: Path, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Writes a picture with a column for each pair: the truth above, what was found below.

    Args:
        path: of the picture.
        pairs: images (3, height, width) of uint8; those of a pair have the same size.
    """
    columns = []
    for pair in pairs:
        width = max(1, round(HEIGHT * pair[0].shape[2] / pair[0].shape[1]))
        resized = [F.pad(F.resize(image, [HEIGHT, width]), [2]) for image in pair]
        columns.append(torch.cat(resized, 1))
    write(path, torch.cat(columns, 2))
