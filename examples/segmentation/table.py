"""A table of the two published segmenters: ``python -m examples.segmentation.table``."""

import torch
from rich.console import Console
from rich.table import Table

from examples.segmentation.models import create_model

# Parameters in millions, and mean intersection over union in per cent on ADE20K's validation
# images, as the authors publish them (IJCV 2024). Nothing here was trained to confirm them.
PUBLISHED: dict[str, tuple[int, float]] = {
    "upernet_soft_norm_small": (54, 46.2),
    "upernet_soft_norm_medium": (76, 48.0),
}


def model_table() -> Table:
    """Parameters, counted here, beside the published number and the published score."""
    table = Table(
        title="SOFT segmenters, 150 classes: parameters in millions, mIoU in per cent",
        caption="mIoU: ADE20K, 512 × 512, as the authors publish it; none of it was measured here. "
        "default: with 49 mean landmarks.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("model", no_wrap=True)
    for heading in (
        "counted",
        "paper",
        "default",
        "twin",
        "mIoU",
    ):
        table.add_column(heading, justify="right")
    for name, (parameters, miou) in PUBLISHED.items():
        table.add_row(
            name,
            f"{count_parameters(name, published=True) / 1e6:.2f}",
            f"{parameters}",
            f"{count_parameters(name) / 1e6:.2f}",
            f"{count_parameters(name.replace('soft_norm', 'softmax')) / 1e6:.2f}",
            f"{miou}",
        )
    return table


def count_parameters(name: str, published: bool = False) -> int:
    """Number of parameters of a segmenter; see ``create_model``."""
    with torch.device("meta"):
        return create_model(name, published=published).num_parameters()


if __name__ == "__main__":
    Console().print(model_table())
