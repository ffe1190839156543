"""A table of the ten classifiers: ``python -m examples.imagenet.table``."""

import timm
from rich.console import Console
from rich.table import Table

from examples.imagenet.macs import count_macs
from examples.models.registry import NORMALIZATIONS
from examples.models.transformer import PUBLISHED_PINV

# Top-1 accuracy on ImageNet-1K at 224 × 224 in per cent, as the authors publish it (SOFT, NeurIPS
# 2021, and the README of github.com/fudan-zvg/SOFT). Nothing here was trained to confirm it.
PUBLISHED_ACCURACY = {
    "soft_tiny": 79.3,
    "soft_small": 82.2,
    "soft_medium": 82.9,
    "soft_large": 83.1,
    "soft_huge": 83.3,
    "soft_norm_tiny": 79.4,
    "soft_norm_small": 82.4,
    "soft_norm_medium": 83.1,
    "soft_norm_large": 83.3,
    "soft_norm_huge": 83.4,
}


def model_table() -> Table:
    """Parameters and multiply-adds, counted here, beside the published accuracy."""
    table = Table(
        title="SOFT classifiers, images of 224 × 224",
        caption="G: 10⁹ multiply-adds an image; the papers leave the inverses out. Accuracy: "
        "ImageNet-1K top-1, as the authors publish it; none of it was measured here.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("model")
    for heading in (
        "parameters",
        "G without inverses",
        "G with 20 steps",
        'G with "minimax"',
        "accuracy in the paper",
    ):
        table.add_column(heading, justify="right")
    for name, accuracy in PUBLISHED_ACCURACY.items():
        macs = count_macs(name)
        published = PUBLISHED_PINV[NORMALIZATIONS[name.rpartition("_")[0]]]
        table.add_row(
            name,
            f"{count_parameters(name) / 1e6:.1f} M",
            f"{macs.rest / 1e9:.2f}",
            f"{(macs.rest + macs.inverses(published)) / 1e9:.2f}",
            f"{(macs.rest + macs.inverses('minimax')) / 1e9:.2f}",
            f"{accuracy} %",
            end_section=name == "soft_huge",
        )
    return table


def count_parameters(name: str) -> int:
    """Number of parameters of a timm model, which is not allocated."""
    model = timm.create_model(name, device="meta")
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    Console().print(model_table())
