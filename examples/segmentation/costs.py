"""Time and memory of one training step of segmenters, with two images of each size.

``python -m examples.segmentation.costs --models upernet_soft_norm_small --sizes 256x256 512x512``
"""

from collections.abc import Callable

import torch
from torch import Tensor

from examples.dense.costs import main
from examples.segmentation.models import create_model
from examples.segmentation.table import PUBLISHED


def prepare(name: str, published: bool, height: int, width: int) -> Callable[[], Tensor]:
    """A segmenter and two images with labels: the result computes the loss."""
    model = create_model(name, published=published).train()
    images = torch.randn(2, 3, height, width)
    labels = torch.randint(model.config.num_labels, (2, height, width))

    def loss() -> Tensor:
        value: Tensor = model(images, labels).loss
        return value

    return loss


if __name__ == "__main__":
    main("segmentation", __doc__ or "", prepare, list(PUBLISHED), ["256x256", "512x512"])
