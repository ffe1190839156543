"""A photograph as tokens: what attention over it costs, how exact it is, and what it looks at."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional as F

import softattn
from examples.costs import Attention, Cost, Grid, measure_costs
from examples.pictures import draw_attention_rows

GRIDS: tuple[Grid, ...] = ((53, 80), (107, 160), (213, 320), (427, 640))
QUICK_GRIDS: tuple[Grid, ...] = ((16, 24), (27, 40))
NUM_LANDMARKS = (49, 196)
POSITION_WEIGHT = 2.0
# Of the kernel, as a multiple of the layer's default scale 1/√D: about a tenth of the photograph
# is then close to any one place.
SHARPNESS = 4.0
LIMIT_SECONDS = 30.0
SAMPLED_ROWS = 1000

PICTURE_GRID: Grid = (213, 320)
# (row, column) as shares of the height and the width.
PLACES = {
    "sky": (0.10, 0.14),
    "woodwork": (0.525, 0.30),
    "tree": (0.88, 0.21),
    "shore": (0.70, 0.79),
}


def photograph(grid: Grid) -> Tensor:
    """The photograph, [height, width, 3] with colours in [0, 1]."""
    image = torch.from_numpy(load_sample_image("china.jpg").copy()).float() / 255
    resized = F.interpolate(image.permute(2, 0, 1)[None], size=grid, mode="area")
    return resized[0].permute(1, 2, 0)


def photograph_tokens(grid: Grid) -> Tensor:
    """One token a pixel, [batch = 1, heads = 1, n, D = 29].

    A token is the 27 colours of the pixel and its eight neighbours, and its row and column; each
    feature has mean 0 and standard deviation 1, the last two POSITION_WEIGHT.
    """
    image = photograph(grid).permute(2, 0, 1)[None]
    neighbourhoods = F.unfold(F.pad(image, (1, 1, 1, 1), mode="reflect"), 3)[0].T
    rows, columns = (torch.arange(size).float() for size in grid)
    places = torch.cartesian_prod(rows, columns)
    features = [neighbourhoods, places]
    standardised = [(x - x.mean(0)) / x.std(0) for x in features]
    standardised[1] *= POSITION_WEIGHT
    return torch.cat(standardised, -1)[None, None]


def kernel_scale(tokens: Tensor) -> float:
    """s in k(x, y) = exp(−s ‖x − y‖² / 2)."""
    return SHARPNESS / float(tokens.shape[-1]) ** 0.5


def softmax_free(tokens: Tensor, grid: Grid, num_landmarks: int) -> Tensor:
    """Softmax-free self-attention over the photograph: linear in n."""
    landmarks = softattn.AvgPoolLandmarks(num_landmarks)(tokens, grid)
    return softattn.softmax_free_attention(
        tokens, None, tokens, landmarks, normalization="token", scale=kernel_scale(tokens)
    )


def exact(tokens: Tensor, grid: Grid) -> Tensor:
    """The Gaussian attention that ``softmax_free`` approximates: quadratic in n."""
    return softattn.gaussian_attention(
        tokens, None, tokens, normalize=True, scale=kernel_scale(tokens)
    )


def softmax(tokens: Tensor, grid: Grid) -> Tensor:
    """PyTorch's own attention on the same tensors: quadratic in n."""
    return F.scaled_dot_product_attention(tokens, tokens, tokens, scale=kernel_scale(tokens))


METHODS: dict[str, Attention] = {
    **{f"softattn, {m} landmarks": partial(softmax_free, num_landmarks=m) for m in NUM_LANDMARKS},
    "softmax (PyTorch's SDPA)": softmax,
    "exact Gaussian": exact,
}


def approximation_errors(tokens: Tensor, grid: Grid) -> dict[str, float]:
    """‖O − exact‖ / ‖exact‖ of softattn over a random sample of rows, by name of the method.

    Rows of the exact answer do not depend on each other, so a sample needs no n × n work.
    """
    generator = torch.Generator().manual_seed(0)
    sample = torch.randperm(tokens.shape[2], generator=generator)[:SAMPLED_ROWS]
    rows = tokens[:, :, sample]
    answer = softattn.gaussian_attention(
        rows, tokens, tokens, normalize=True, scale=kernel_scale(tokens)
    )

    def error(method: Attention) -> float:
        return float((method(tokens, grid)[:, :, sample] - answer).norm() / answer.norm())

    return {name: error(method) for name, method in METHODS.items() if "softattn" in name}


@dataclass(frozen=True)
class AttentionRows:
    """Rows of the attention matrix, for the tokens at some places.

    approximated: [places, n], the rows of softattn's matrix, which never exists as a whole.
    exact: [places, n], the rows that they approximate.
    layer_mismatch: the largest difference between approximated · V and what softattn answers at
        these tokens, over the largest entry of the latter: 0 up to rounding.
    """

    approximated: Tensor
    exact: Tensor
    layer_mismatch: float


def attention_rows(tokens: Tensor, grid: Grid, num_landmarks: int, index: Tensor) -> AttentionRows:
    """The rows ``index`` of the matrix that normalization="token" stands for.

    With P = k(tokens, landmarks), A = k(landmarks, landmarks) and c_i = 1 − P_i A⁺ P_iᵀ, row i is
    (P_i A⁺ Pᵀ + c_i e_i) / (P_i A⁺ Pᵀ 1 + c_i): its factors are n × m and m × m.
    """
    kernel = partial(softattn.gaussian_kernel, scale=kernel_scale(tokens))
    landmarks = softattn.AvgPoolLandmarks(num_landmarks)(tokens, grid)
    chosen = tokens[:, :, index]
    inverse = softattn.newton_pinv(kernel(landmarks, landmarks), method="minimax", ridge=0.01)
    p_chosen, p = kernel(chosen, landmarks), kernel(tokens, landmarks)
    weights = p_chosen @ inverse
    rows = (weights @ p.mT)[0, 0]
    rows[torch.arange(len(index)), index] += 1 - (weights * p_chosen).sum(-1)[0, 0]
    rows /= rows.sum(-1, keepdim=True)

    layer = softmax_free(tokens, grid, num_landmarks)[0, 0, index]
    mismatch = (rows @ tokens[0, 0] - layer).abs().max() / layer.abs().max()
    exact_rows = kernel(chosen, tokens)[0, 0]
    return AttentionRows(rows, exact_rows / exact_rows.sum(-1, keepdim=True), float(mismatch))


def show_costs(out: Path, progress: Progress, results: dict[str, Any], *, quick: bool) -> None:
    """Measures time, memory and error at rising resolutions, and prints them as a table."""
    inputs = {grid: photograph_tokens(grid) for grid in (QUICK_GRIDS if quick else GRIDS)}
    costs: list[Cost] = []
    errors = {grid: approximation_errors(tokens, grid) for grid, tokens in inputs.items()}
    task = progress.add_task("photograph: time and memory", total=len(inputs) * len(METHODS))
    try:
        for cost in measure_costs(METHODS, inputs, LIMIT_SECONDS):
            costs.append(cost)
            progress.advance(task)
            progress.update(task, description=f"photograph: {cost.method}, n = {cost.tokens:,}")
    finally:
        progress.remove_task(task)
        progress.console.print(_cost_table(costs, errors))
        results["costs"] = [
            asdict(cost) | {"error": errors[cost.grid].get(cost.method)} for cost in costs
        ]


def show_attention_rows(
    out: Path, progress: Progress, results: dict[str, Any], *, quick: bool
) -> Path:
    """Draws what a few places of the photograph attend to."""
    task = progress.add_task("photograph: rows of the attention matrix", total=None)
    grid = QUICK_GRIDS[-1] if quick else PICTURE_GRID
    height, width = grid
    places = {name: (int(y * height), int(x * width)) for name, (y, x) in PLACES.items()}
    index = torch.tensor([y * width + x for y, x in places.values()])
    num_landmarks = NUM_LANDMARKS[-1]
    rows = attention_rows(photograph_tokens(grid), grid, num_landmarks, index)
    negative = (-rows.approximated.clamp(max=0)).sum(-1)
    moved = (rows.approximated - rows.exact).abs().sum(-1) / 2
    path = out / "attention_rows.png"
    draw_attention_rows(
        path, photograph(grid), places, rows.approximated, rows.exact, num_landmarks
    )
    progress.remove_task(task)
    progress.console.print(
        f"Rows of the attention matrix ({num_landmarks} landmarks, {height * width:,} tokens): row · V"
        f" differs from the layer's output by {rows.layer_mismatch:.1e} of its scale."
    )
    results["rows"] = {
        "grid": grid,
        "landmarks": num_landmarks,
        "layer_mismatch": rows.layer_mismatch,
        "places": {
            name: {"negative_weight": float(negative[i]), "misplaced_weight": float(moved[i])}
            for i, name in enumerate(places)
        },
    }
    return path


def _cost_table(costs: list[Cost], errors: dict[Grid, dict[str, float]]) -> Table:
    table = Table(title="Self-attention over a photograph, forward", title_justify="left")
    for heading in ("tokens", "attention"):
        table.add_column(heading)
    for heading in ("time", "memory", "error"):
        table.add_column(heading, justify="right")
    for grid, name, cells in _cost_rows(costs, errors):
        table.add_row(grid, name, *cells, end_section=name == list(METHODS)[-1])
    return table


def _cost_rows(
    costs: list[Cost], errors: dict[Grid, dict[str, float]]
) -> Iterator[tuple[str, str, list[str]]]:
    by_size = sorted(costs, key=lambda cost: cost.tokens)
    shown: set[Grid] = set()
    for cost in by_size:
        heading = "" if cost.grid in shown else f"{cost.tokens:,}"
        shown.add(cost.grid)
        error = errors[cost.grid].get(cost.method)
        if cost.skipped:
            cells = ["—", f"est. {cost.seconds:.0f} s", ""]
        else:
            cells = [f"{cost.seconds:.3f} s", f"{cost.peak_mib:.0f} MiB", ""]
        cells[-1] = "" if error is None else f"{error:.1%}"
        yield heading, cost.method, cells
