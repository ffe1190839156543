"""Tables of published detectors and segmenters: parameters counted beside published numbers."""

from collections.abc import Callable, Sequence

import torch
from rich.table import Table
from torch import nn

# Name of a model to its published parameters, in millions, and its published scores, in per cent.
Published = dict[str, tuple[int, *tuple[float | None, ...]]]


def model_table(
    title: str,
    scores: Sequence[str],
    caption: str,
    published: Published,
    create_model: Callable[..., nn.Module],
) -> Table:
    """A row for each model, with the parameters that are counted here.

    Args:
        title: of the table.
        scores: headings of the published scores, in per cent.
        caption: what the scores are.
        published: numbers of each model.
        create_model: of the room.
    """
    table = Table(
        title=f"{title}; parameters in millions",
        caption=f"{caption}, as the authors publish it; none of it was measured here.\n"
        "mean: with 49 mean landmarks, which is the default. twin: with softmax attention.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("model", no_wrap=True)
    for heading in ("counted", "paper", "mean", "twin", *scores):
        table.add_column(heading, justify="right")
    for name, (parameters, *results) in published.items():
        counts = (
            count_parameters(create_model, name, published=True),
            count_parameters(create_model, name),
            count_parameters(create_model, name.replace("soft_norm", "softmax")),
        )
        counted, mean, twin = (f"{count / 1e6:.2f}" for count in counts)
        table.add_row(
            name,
            counted,
            str(parameters),
            mean,
            twin,
            *("" if result is None else str(result) for result in results),
        )
    return table


def count_parameters(
    create_model: Callable[..., nn.Module], name: str, published: bool = False
) -> int:
    """Number of parameters of a model, which is not allocated."""
    with torch.device("meta"):
        model = create_model(name, published=published)
    return sum(parameter.numel() for parameter in model.parameters())
