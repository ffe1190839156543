"""A table of the eight published detectors: ``python -m examples.detection.table``."""

from rich.console import Console

from examples.dense.table import Published, model_table
from examples.detection.models import create_model

# Parameters in millions, and average precision in per cent of boxes and of masks on COCO's
# validation images, as the authors publish them (IJCV 2024). Nothing here was trained to confirm
# them.
PUBLISHED: Published = {
    "retinanet_soft_norm_tiny": (23, 40.0, None),
    "retinanet_soft_norm_small": (34, 42.8, None),
    "retinanet_soft_norm_medium": (55, 44.3, None),
    "retinanet_soft_norm_large": (74, 45.3, None),
    "mask_rcnn_soft_norm_tiny": (33, 41.2, 38.2),
    "mask_rcnn_soft_norm_small": (44, 43.8, 40.1),
    "mask_rcnn_soft_norm_medium": (65, 46.6, 42.0),
    "mask_rcnn_soft_norm_large": (84, 47.0, 42.2),
}


def main() -> None:
    """Prints the table."""
    scores = ("box AP", "mask AP")
    caption = "AP: COCO val2017 after 12 epochs"
    Console().print(
        model_table("SOFT detectors, 80 classes", scores, caption, PUBLISHED, create_model)
    )


if __name__ == "__main__":
    main()
