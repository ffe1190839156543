"""A table of the two published segmenters: ``python -m examples.segmentation.table``."""

from rich.console import Console

from examples.dense.table import Published, model_table
from examples.segmentation.models import create_model

# Parameters in millions, and mean intersection over union in per cent on ADE20K's validation
# images, as the authors publish them (IJCV 2024). Nothing here was trained to confirm them.
PUBLISHED: Published = {
    "upernet_soft_norm_small": (54, 46.2),
    "upernet_soft_norm_medium": (76, 48.0),
}


def main() -> None:
    """Prints the table."""
    caption = "mIoU: ADE20K, 512 × 512"
    Console().print(
        model_table("SOFT segmenters, 150 classes", ["mIoU"], caption, PUBLISHED, create_model)
    )


if __name__ == "__main__":
    main()
