"""A table of the eight published detectors: ``python -m examples.detection.table``."""

import torch
from rich.console import Console
from rich.table import Table

from examples.detection.models import create_model

# Parameters in millions, and average precision in per cent of boxes and of masks on COCO's
# validation images, as the authors publish them (IJCV 2024). Nothing here was trained to confirm
# them.
PUBLISHED: dict[str, tuple[int, float, float | None]] = {
    "retinanet_soft_norm_tiny": (23, 40.0, None),
    "retinanet_soft_norm_small": (34, 42.8, None),
    "retinanet_soft_norm_medium": (55, 44.3, None),
    "retinanet_soft_norm_large": (74, 45.3, None),
    "mask_rcnn_soft_norm_tiny": (33, 41.2, 38.2),
    "mask_rcnn_soft_norm_small": (44, 43.8, 40.1),
    "mask_rcnn_soft_norm_medium": (65, 46.6, 42.0),
    "mask_rcnn_soft_norm_large": (84, 47.0, 42.2),
}


def model_table() -> Table:
    """Parameters, counted here, beside the published number and the published precision."""
    table = Table(
        title="SOFT detectors, 80 classes; parameters in millions, AP of boxes and masks in %",
        caption="AP: COCO val2017, 12 epochs, as the authors publish it; none of it was "
        "measured here. default: with 49 mean landmarks.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("model", no_wrap=True)
    for heading in (
        "counted",
        "paper",
        "default",
        "twin",
        "boxes",
        "masks",
    ):
        table.add_column(heading, justify="right")
    for name, (parameters, box_ap, mask_ap) in PUBLISHED.items():
        table.add_row(
            name,
            f"{count_parameters(name, published=True) / 1e6:.2f}",
            f"{parameters}",
            f"{count_parameters(name) / 1e6:.2f}",
            f"{count_parameters(name.replace('soft_norm', 'softmax')) / 1e6:.2f}",
            f"{box_ap}",
            f"{mask_ap or ''}",
            end_section=name == "retinanet_soft_norm_large",
        )
    return table


def count_parameters(name: str, published: bool = False) -> int:
    """Number of parameters of a detector; see ``create_model``."""
    with torch.device("meta"):
        model = create_model(name, published=published)
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    Console().print(model_table())
