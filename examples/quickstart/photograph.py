"""Attention over a photograph: its cost, its error and where it looks."""

import math
from dataclasses import asdict
from functools import partial

import matplotlib
import torch
from rich.table import Table
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional as F

import softattn
from examples import card
from examples.quickstart.costs import Cost, Grid, Method, measure_costs
from examples.quickstart.pictures import (
    AttentionRows,
    attention_row,
    photograph_with_places,
)
from examples.quickstart.report import Report

GRIDS: tuple[Grid, ...] = ((53, 80), (107, 160), (213, 320), (427, 640))
QUICK_GRIDS: tuple[Grid, ...] = ((16, 24), (27, 40))
NUM_LANDMARKS = (49, 196)
POSITION_WEIGHT = 2.0
# Kernel scale, as a multiple of the default 1/√D. With it, a place of the photograph is close to
# about a tenth of the others.
SHARPNESS = 4.0
LIMIT_SECONDS = 20.0
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
    """The s of k(x, y) = exp(−s ‖x − y‖² / 2)."""
    return SHARPNESS / math.sqrt(tokens.shape[-1])


def softmax_free(tokens: Tensor, grid: Grid, num_landmarks: int) -> Tensor:
    """Softmax-free self-attention over the photograph; time linear in n."""
    landmarks = softattn.AvgPoolLandmarks(num_landmarks)(tokens, grid)
    return softattn.softmax_free_attention(
        tokens, None, tokens, landmarks, scale=kernel_scale(tokens)
    )


def exact(tokens: Tensor, grid: Grid) -> Tensor:
    """The Gaussian attention that ``softmax_free`` approximates; time quadratic in n."""
    return softattn.gaussian_attention(
        tokens, None, tokens, normalize=True, scale=kernel_scale(tokens)
    )


def softmax(tokens: Tensor, grid: Grid) -> Tensor:
    """PyTorch's own attention on the same tensors; time quadratic in n."""
    return F.scaled_dot_product_attention(tokens, tokens, tokens, scale=kernel_scale(tokens))


SOFTMAX_FREE = {
    f"softattn, {m} landmarks": Method(partial(softmax_free, num_landmarks=m), exponent=1)
    for m in NUM_LANDMARKS
}
METHODS = SOFTMAX_FREE | {
    "softmax (PyTorch's SDPA)": Method(softmax, exponent=2),
    "exact Gaussian": Method(exact, exponent=2),
}


def approximation_errors(tokens: Tensor, grid: Grid) -> dict[str, float]:
    """‖O − exact‖ / ‖exact‖ of softattn over a random sample of rows, by name of the method.

    Rows of the exact output do not depend on each other, so a sample needs no n × n work.
    """
    generator = torch.Generator().manual_seed(0)
    sample = torch.randperm(tokens.shape[2], generator=generator)[:SAMPLED_ROWS]
    rows = tokens[:, :, sample]
    expected = softattn.gaussian_attention(
        rows, tokens, tokens, normalize=True, scale=kernel_scale(tokens)
    )

    errors = {}
    for name, method in SOFTMAX_FREE.items():
        output = method.attention(tokens, grid)[:, :, sample]
        errors[name] = float((output - expected).norm() / expected.norm())
    return errors


def attention_rows(tokens: Tensor, grid: Grid, num_landmarks: int, index: Tensor) -> AttentionRows:
    """The rows ``index`` of softattn's attention matrix, from its factors."""
    landmarks = softattn.AvgPoolLandmarks(num_landmarks)(tokens, grid)
    factors = softattn.attention_factors(tokens, None, landmarks, scale=kernel_scale(tokens))
    rows = factors.rows(index)[0, 0]
    layer = softmax_free(tokens, grid, num_landmarks)[0, 0, index]
    mismatch = (rows @ tokens[0, 0] - layer).abs().max() / layer.abs().max()
    exact_rows = softattn.gaussian_kernel(tokens[:, :, index], tokens, scale=kernel_scale(tokens))
    exact_rows = exact_rows[0, 0]
    return AttentionRows(rows, exact_rows / exact_rows.sum(-1, keepdim=True), float(mismatch))


def show_costs(report: Report) -> None:
    """Measures time, memory and error at growing resolutions, and prints a table."""
    task = report.progress.add_task("photograph: errors", total=None)
    inputs = {grid: photograph_tokens(grid) for grid in (QUICK_GRIDS if report.quick else GRIDS)}
    errors = {grid: approximation_errors(tokens, grid) for grid, tokens in inputs.items()}
    report.progress.update(
        task, description="photograph: time and memory", total=len(inputs) * len(METHODS)
    )
    costs: list[Cost] = []
    try:
        for cost in measure_costs(METHODS, inputs, LIMIT_SECONDS):
            costs.append(cost)
            report.progress.advance(task)
    finally:
        report.progress.remove_task(task)
        report.print(_cost_table(costs, errors))
        report.numbers["costs"] = [
            asdict(cost) | {"error": errors[cost.grid].get(cost.method)} for cost in costs
        ]


def show_attention_rows(report: Report) -> None:
    """Draws what a few places of the photograph attend to."""
    task = report.progress.add_task("photograph: rows of the attention matrix", total=None)
    grid = QUICK_GRIDS[-1] if report.quick else PICTURE_GRID
    height, width = grid
    places = {name: (int(y * height), int(x * width)) for name, (y, x) in PLACES.items()}
    index = torch.tensor([y * width + x for y, x in places.values()])
    num_landmarks = NUM_LANDMARKS[-1]
    rows = attention_rows(photograph_tokens(grid), grid, num_landmarks, index)
    with matplotlib.rc_context(card.STYLE):
        figures = {"photograph": photograph_with_places(photograph((427, 640)), PLACES)}
        for number, (name, place) in enumerate(places.items(), 1):
            figures[name] = attention_row(rows, number, name, place, grid)
        for name, figure in figures.items():
            figure.savefig(report.new_picture(f"attention_rows_{name}.png"), dpi=160)
    report.progress.remove_task(task)
    report.numbers["attention_rows"] = {
        "grid": grid,
        "landmarks": num_landmarks,
        "layer_mismatch": rows.layer_mismatch,
        "negative_weight": dict(zip(places, rows.negative_weight.tolist(), strict=True)),
        "misplaced_weight": dict(zip(places, rows.misplaced_weight.tolist(), strict=True)),
    }
    report.print(
        f"Four rows of the {height * width:,} × {height * width:,} attention matrix, from its "
        f"factors ({num_landmarks} landmarks). Row · V equals the output of softattn within "
        f"{rows.layer_mismatch:.0e} of its largest entry."
    )


def _cost_table(costs: list[Cost], errors: dict[Grid, dict[str, float]]) -> Table:
    table = Table(
        title="Self-attention over a photograph, forward",
        caption=f"Kernel scale {SHARPNESS:.0f}/√D; error: of softattn, relative to the exact "
        f"output, over {SAMPLED_ROWS:,} rows; memory: peak, input included.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("tokens", justify="right")
    table.add_column("attention")
    for heading in ("time", "memory", "error"):
        table.add_column(heading, justify="right")
    for grid in sorted({cost.grid for cost in costs}):
        for i, cost in enumerate(cost for cost in costs if cost.grid == grid):
            error = errors[grid].get(cost.method)
            table.add_row(
                "" if i else f"{cost.tokens:,}",
                cost.method,
                f"—  (est. {cost.seconds:.0f} s)" if cost.skipped else f"{cost.seconds:.3f} s",
                "" if cost.peak_mib is None else f"{cost.peak_mib:.0f} MiB",
                "" if error is None else f"{error:.1%}",
            )
        table.add_section()
    return table
