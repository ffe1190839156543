"""A table of the ten classifiers: ``python -m examples.imagenet.table``."""

import timm
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode

from examples.imagenet.macs import count_macs
from examples.imagenet.model import PUBLISHED_PINV
from examples.imagenet.registry import MODELS

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


def size_table() -> Table:
    """Parameters and multiply-adds as they are here, and accuracy as it was published."""
    table = Table(
        title="The published SOFT classifiers at 224 × 224",
        caption="G: 10⁹ multiply-adds an image, which the papers count without the inverses. "
        "Accuracy: ImageNet-1K top-1 as the authors publish it, not measured here.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("model")
    for heading in (
        "parameters",
        "G without inverses",
        'G with the published 20 steps',
        'G with "minimax"',
        "the paper's accuracy",
    ):
        table.add_column(heading, justify="right")
    for name in MODELS:
        table.add_row(*size_row(name), end_section=name == "soft_huge")
    return table
