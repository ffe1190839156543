"""A small transformer that learns handwritten digits with each kind of attention."""

import os
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from einops import rearrange
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from examples.quickstart.pictures import draw_learning_curves
from examples.quickstart.processes import worker_processes
from examples.quickstart.report import Report
from softattn import AvgPoolLandmarks, KMeansLandmarks, SoftmaxFreeAttention

# The network and its training were chosen on another split, with random_state=0.
SPLIT_SEED = 1
EPOCHS = 12
GRID = (8, 8)
NUM_LANDMARKS = 16
DIM, HEADS, DEPTH = 64, 2, 2
BATCH_SIZE = 32
LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class Variant:
    """A kind of attention.

    label: in tables and pictures.
    options: of ``SoftmaxFreeAttention``, or None for PyTorch's softmax attention.
    """

    label: str
    options: dict[str, Any] | None

    def attention(self) -> nn.Module:
        """A new layer."""
        if self.options is None:
            return nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        options = {"landmarks": AvgPoolLandmarks(NUM_LANDMARKS)} | self.options
        return SoftmaxFreeAttention(DIM, HEADS, **options)


_KMEANS = {"landmarks": KMeansLandmarks(NUM_LANDMARKS)}
VARIANTS = {
    "token": Variant('softattn, "token"', {}),
    "kmeans": Variant("softattn, k-means", _KMEANS),
    "near_field": Variant("softattn, k-means, near field of 16", _KMEANS | {"near_field": 16}),
    "landmark": Variant('softattn, "landmark"', {"normalization": "landmark"}),
    "none": Variant('softattn, "none"', {"normalization": "none"}),
    "softmax": Variant("softmax (PyTorch's)", None),
}


class Block(nn.Module):
    """Attention and a two-layer network, each with a norm before it and a residual connection."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.attention = variant.attention()
        self.attention_norm = nn.LayerNorm(DIM)
        self.mlp = nn.Sequential(
            nn.LayerNorm(DIM), nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1 + pixels, dim) to the same shape."""
        x = x + self.attend(self.attention_norm(x))
        output: Tensor = x + self.mlp(x)
        return output

    def attend(self, x: Tensor) -> Tensor:
        """(batch, 1 + pixels, dim) to the same shape."""
        if isinstance(self.attention, nn.MultiheadAttention):
            return self.attention(x, x, x, need_weights=False)[0]
        # The class token is a query and a key, but not a place of the grid.
        output: Tensor = self.attention(x, grid=GRID, num_prefix_tokens=1)
        return output


class Classifier(nn.Module):
    """One token for each pixel, and a class token that is classified."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, DIM, kernel_size=3, padding=1)
        self.positions = nn.Parameter(torch.randn(GRID[0] * GRID[1], DIM) / 2)
        self.class_token = nn.Parameter(torch.randn(1, 1, DIM) / 2)
        self.blocks = nn.Sequential(*(Block(variant) for _ in range(DEPTH)))
        self.head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, 8, 8) to logits (batch, 10)."""
        pixels = rearrange(self.embed(images.unsqueeze(1)), "b d h w -> b (h w) d")
        tokens = torch.cat(
            [self.class_token.expand(len(images), 1, DIM), pixels + self.positions], 1
        )
        logits: Tensor = self.head(self.blocks(tokens)[:, 0])
        return logits


@dataclass(frozen=True)
class TrainingRun:
    """One training.

    variant: name of the kind of attention.
    seed: of the training.
    parameters: number of them.
    seconds: of the training.
    test_accuracy: after each epoch; no choice depends on it.
    """

    variant: str
    seed: int
    parameters: int
    seconds: float
    test_accuracy: list[float]


def train(job: tuple[str, int, int]) -> TrainingRun:
    """Trains a model; ``job`` is the name of its variant, its seed and the number of epochs."""
    variant, seed, epochs = job
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)
    targets = torch.tensor(digits.target)
    train_rows, test_rows = train_test_split(
        torch.arange(len(targets)), test_size=0.25, random_state=SPLIT_SEED, stratify=digits.target
    )
    images = (images - images[train_rows].mean()) / images[train_rows].std()

    torch.manual_seed(seed)
    model = Classifier(VARIANTS[variant])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    batches = -(-len(train_rows) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=epochs * batches, pct_start=0.2
    )
    test_accuracy = []
    start = time.perf_counter()
    for _ in range(epochs):
        for batch in train_rows[torch.randperm(len(train_rows))].split(BATCH_SIZE):
            loss = F.cross_entropy(model(images[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            right = model(images[test_rows]).argmax(-1) == targets[test_rows]
        test_accuracy.append(float(right.float().mean()))
    return TrainingRun(
        variant,
        seed,
        sum(parameter.numel() for parameter in model.parameters()),
        time.perf_counter() - start,
        test_accuracy,
    )


def show_digits(report: Report) -> None:
    """Trains each variant with each seed on a core of its own; prints a table, draws the curves."""
    epochs = 1 if report.quick else EPOCHS
    jobs = [(variant, seed, epochs) for seed in range(report.seeds) for variant in VARIANTS]
    task = report.progress.add_task("digits: training", total=len(jobs))
    runs: list[TrainingRun] = []
    try:
        with worker_processes(min(len(jobs), os.cpu_count() or 1), threads=1) as processes:
            for run in processes.imap_unordered(train, jobs):
                runs.append(run)
                report.progress.advance(task)
    finally:
        report.progress.remove_task(task)
        runs.sort(key=lambda run: (list(VARIANTS).index(run.variant), run.seed))
        report.numbers["digits"] = [asdict(run) for run in runs]
        if runs:
            by_variant: dict[str, list[TrainingRun]] = {}
            for run in runs:
                by_variant.setdefault(VARIANTS[run.variant].label, []).append(run)
            report.print(_table(by_variant))
            draw_learning_curves(
                report.new_picture("digits.png"),
                {name: [run.test_accuracy for run in group] for name, group in by_variant.items()},
            )


def _table(trained: dict[str, list[TrainingRun]]) -> Table:
    table = Table(
        title="Handwritten digits, test accuracy after the last epoch",
        caption="Mean and range over the seeds. One of the 450 test images is 0.2 %. Training time "
        "is on one core.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("attention")
    for heading in ("accuracy", "range", "parameters", "training"):
        table.add_column(heading, justify="right")
    for name, runs in trained.items():
        last = [run.test_accuracy[-1] for run in runs]
        table.add_row(
            name,
            f"{sum(last) / len(last):.1%}",
            f"{min(last):.1%} to {max(last):.1%}",
            f"{runs[0].parameters:,}",
            f"{sum(run.seconds for run in runs) / len(runs):.0f} s",
        )
    return table
