"""Tokens made of a photograph that comes with scikit-learn."""

import torch
from torch import Tensor

PHOTOGRAPHS = ("china.jpg", "flower.jpg")


def photograph_tokens(
    name: str, side: int, features: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Queries and values (1, 1, side², features) in float64, in row-major order of the patches.

    A token is a square patch of the photograph's middle and its place in it, every number
    standardised. Queries are the projection to the leading principal components, which keeps
    distances best, scaled to a mean variance of 1; values are a random linear map of the same.

    Raises:
        ValueError: the photograph has fewer pixels than patches, or a token too few numbers.
    """
    from sklearn.datasets import load_sample_image

    pixels = torch.from_numpy(load_sample_image(name).copy()).double() / 255
    height, width, colours = pixels.shape
    patch = min(height, width) // side
    numbers = colours * patch**2 + 2
    if patch == 0 or numbers < features:
        raise ValueError(
            f"{name} of {height} × {width} pixels, cut into {side} × {side} patches, gives tokens "
            f"of {numbers if patch else 0} numbers and {features} are needed; use a smaller side"
        )
    top, left = (height - side * patch) // 2, (width - side * patch) // 2
    square = pixels[top : top + side * patch, left : left + side * patch]
    patches = square.reshape(side, patch, side, patch, colours).transpose(1, 2)
    axis = torch.linspace(-1, 1, side, dtype=torch.float64)
    places = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    tokens = torch.cat([patches.reshape(side**2, -1), places.reshape(side**2, 2)], -1)
    tokens = (tokens - tokens.mean(0)) / tokens.std(0)

    _, _, components = torch.linalg.svd(tokens, full_matrices=False)
    queries = tokens @ components[:features].mT
    queries = queries / queries.var(0).mean().sqrt()
    weights = torch.randn(tokens.shape[-1], features, dtype=torch.float64, generator=generator)
    values = tokens @ weights / tokens.shape[-1] ** 0.5
    return queries[None, None], values[None, None]
