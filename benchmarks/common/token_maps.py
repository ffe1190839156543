"""Maps of tokens to measure on: smooth photographs, a texture, and independent random tokens.

As in a layer at initialisation, queries and values are random linear maps of the tokens, one for
each head, with a mean variance of 1. In self-attention the keys are the queries.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from softattn import reference

_ROWS_AT_ONCE = 64

Grid = tuple[int, int]


def photograph(grid: Grid, file: str = "china.jpg") -> Tensor:
    """A photograph that scikit-learn ships, [height, width, 3], colours in [0, 1]."""
    from sklearn.datasets import load_sample_image

    image = torch.from_numpy(load_sample_image(file).copy()).double() / 255
    resized = F.interpolate(image.permute(2, 0, 1)[None], size=grid, mode="area")
    return resized[0].permute(1, 2, 0)


def texture(grid: Grid) -> Tensor:
    """Zone plates around three corners, one for each colour, [height, width, 3].

    A zone plate is cos(π r² / 2R). Its frequency grows with the distance r from its centre, from 0
    to half a period a pixel at r = R, here the map's diagonal: neighbours differ nearly everywhere.
    """
    height, width = grid
    diagonal = math.hypot(height, width)
    rows, columns = torch.meshgrid(*(torch.arange(n).double() for n in grid), indexing="ij")
    corners = ((0, 0), (0, width), (height, 0))
    squares = [(rows - y).square() + (columns - x).square() for y, x in corners]
    return torch.stack([torch.cos(math.pi * r2 / (2 * diagonal)) for r2 in squares], -1)


PICTURES: dict[str, Callable[[Grid], Tensor]] = {"photograph": photograph, "texture": texture}
INPUTS = (*PICTURES, "normal")


def queries_and_values(
    name: str, grid: Grid, *, heads: int, head_dim: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Queries and values of one of ``INPUTS``, each [1, heads, n, head_dim] in float64.

    "photograph" and "texture" have a token for each pixel: the colours of its neighbourhood, which
    has at least ``head_dim`` numbers, and its row and column, all standardised. "normal" has
    independent normal queries and values.
    """
    shape = (1, heads, grid[0] * grid[1], head_dim)
    options = {"dtype": torch.float64, "generator": generator}
    if name == "normal":
        return torch.randn(shape, **options), torch.randn(shape, **options)  # type: ignore[call-overload]
    tokens = pixel_tokens(PICTURES[name](grid), head_dim)
    weights = torch.randn(2, heads, tokens.shape[-1], head_dim, **options)  # type: ignore[call-overload]
    query, value = (tokens @ weights)[:, None]
    return query / query.var(2).mean().sqrt(), value / value.var(2).mean().sqrt()


def pixel_tokens(image: Tensor, least_features: int) -> Tensor:
    """[n, features]: each pixel's neighbourhood of k × k colours, its row and its column.

    All features are standardised; there are at least ``least_features`` of colour.
    """
    height, width, colours = image.shape
    k = math.ceil(math.sqrt(least_features / colours))
    k += 1 - k % 2
    margin = (k // 2,) * 4
    mode = "reflect" if min(height, width) > k // 2 else "replicate"
    padded = F.pad(image.permute(2, 0, 1)[None], margin, mode=mode)
    neighbourhoods = F.unfold(padded, k)[0].T
    places = torch.cartesian_prod(*(torch.linspace(-1, 1, n).double() for n in (height, width)))
    tokens = torch.cat([neighbourhoods, places], -1)
    return (tokens - tokens.mean(0)) / tokens.std(0).clamp_min(torch.finfo(tokens.dtype).eps)


def grid_of(tokens: int) -> Grid:
    """The most nearly square grid of so many tokens."""
    height = next(h for h in range(math.isqrt(tokens), 0, -1) if tokens % h == 0)
    return height, tokens // height


def exact_rows(query: Tensor, value: Tensor, rows: Tensor, *, normalize: bool) -> Tensor:
    """Rows of exact Gaussian self-attention in float64, by the O(n²) reference."""
    query, value = query.double(), value.double()
    blocks = rows.split(_ROWS_AT_ONCE)
    return torch.cat(
        [
            reference.gaussian_attention(query[:, :, block], query, value, normalize=normalize)
            for block in blocks
        ],
        2,
    )


def relative_error(output: Tensor, truth: Tensor) -> float:
    """‖O − T‖ / ‖T‖ in the Frobenius norm."""
    norm = torch.linalg.vector_norm
    return float(norm(output.double() - truth) / norm(truth))


def sampled_rows(tokens: int, number: int, generator: torch.Generator) -> Tensor:
    """The indices of up to ``number`` tokens, drawn without replacement."""
    return torch.randperm(tokens, generator=generator)[:number]
