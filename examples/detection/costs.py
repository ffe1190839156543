"""Time and memory of one training step of detectors, with one image of each size.

``python -m examples.detection.costs --models retinanet_soft_norm_tiny --sizes 224x224 800x1333``
"""

from collections.abc import Callable

import torch
from torch import Tensor

from examples.dense.costs import main
from examples.detection.models import create_model
from examples.detection.table import PUBLISHED


def prepare(name: str, published: bool, height: int, width: int) -> Callable[[], Tensor]:
    """A detector, and an image with one object: the result computes the loss."""
    shorter, longer = sorted((height, width))
    model = create_model(name, published=published, min_size=shorter, max_size=longer).train()
    masks = torch.zeros(1, height, width, dtype=torch.uint8)
    masks[:, height // 4 : height // 2, width // 4 : width // 2] = 1
    target = {
        "boxes": torch.tensor([[width // 4, height // 4, width // 2, height // 2]]).float(),
        "labels": torch.tensor([1]),
        "masks": masks,
    }
    image = torch.rand(3, height, width)
    return lambda: torch.stack(list(model([image], [target]).values())).sum()


if __name__ == "__main__":
    main("detection", __doc__ or "", prepare, list(PUBLISHED), ["224x224", "448x448", "800x1333"])
