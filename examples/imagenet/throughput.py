"""Images per second and peak memory of the classifiers beside their softmax twins.

``python -m examples.imagenet.throughput`` measures all ten at 224, 448 and 896 pixels. Options make
it shorter, such as ``--sizes 224 --models soft_tiny``, or choose the variant whose cost is linear:
``--landmarks avg --pinv minimax``.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn
from torch.utils.benchmark import Timer

import softattn
from examples.models.registry import MODELS
from examples.training.atomic import replacing

ROUNDS = 5
LEAST_SECONDS = 0.3


@dataclass(frozen=True)
class Measurement:
    """One model at one size.

    model: its name.
    size: height and width of the images.
    images_per_second: median over rounds, in which a model and its twin take turns; None if the
        device has too little memory.
    peak_memory: most bytes that tensors took, None on a CPU.
    """

    model: str
    size: int
    images_per_second: float | None
    peak_memory: int | None


@dataclass(frozen=True)
class Work:
    """The work that is timed.

    device: where it runs.
    batch_size: images at a time.
    training: whether it includes a backward pass.
    """

    device: torch.device
    batch_size: int
    training: bool

    def run(self, model: nn.Module, images: torch.Tensor) -> None:
        """Does it once, in bfloat16 on a GPU."""
        kind = self.device.type
        with (
            torch.set_grad_enabled(self.training),
            torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"),
        ):
            loss = model(images).float().square().mean()
        if self.training:
            loss.backward()
            model.zero_grad()


class Contender:
    """A model that works on one batch.

    Args:
        name: of a timm model.
        options: of ``timm.create_model``.
        size: height and width of the images.
        work: that it does with them.
    """

    def __init__(self, name: str, options: dict[str, Any], size: int, work: Work) -> None:
        self.name, self.options, self.size, self.work = name, options, size, work
        self.seconds: list[float] = []
        self.peak_memory: int | None = None
        self.fits = True

    def take_turn(self) -> None:
        """Builds the model again, so that only one is in memory, and times it."""
        if not self.fits:
            return
        try:
            self._time()
        except torch.OutOfMemoryError:
            self.fits = False

    def result(self) -> Measurement:
        """The measurement over all turns."""
        speed = self.work.batch_size / statistics.median(self.seconds) if self.fits else None
        return Measurement(self.name, self.size, speed, self.peak_memory if self.fits else None)

    def _time(self) -> None:
        torch.manual_seed(0)
        work, device = self.work, self.work.device
        model = timm.create_model(self.name, **self.options).to(device).train(work.training)
        images = torch.randn(work.batch_size, 3, self.size, self.size, device=device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        timer = Timer(
            "work.run(model, images)",
            globals={"work": work, "model": model, "images": images},
            num_threads=torch.get_num_threads(),
        )
        self.seconds.append(timer.blocked_autorange(min_run_time=LEAST_SECONDS).median)
        if device.type == "cuda":
            self.peak_memory = torch.cuda.max_memory_allocated()


def measure(
    models: list[str],
    options: dict[str, Any],
    sizes: list[int],
    work: Work,
    advance: Callable[[], None] = lambda: None,
) -> list[Measurement]:
    """Measures each model, with ``options``, and its twin at each size.

    Args:
        models: their names.
        options: of ``timm.create_model``, for the models and not for their twins.
        sizes: heights and widths of the images.
        work: to time.
        advance: is called after each model and size.
    """
    results = []
    for size in sizes:
        for name in models:
            pair = [
                Contender(name, options, size, work),
                Contender(twin_of(name), {}, size, work),
            ]
            for _ in range(ROUNDS):
                for contender in pair:
                    contender.take_turn()
            results += [contender.result() for contender in pair]
            advance()
    return results


def twin_of(name: str) -> str:
    """The softmax model of the same size."""
    return f"softmax_{name.rpartition('_')[2]}"


def environment(device: torch.device) -> dict[str, Any]:
    """The hardware and software of a measurement."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "threads": torch.get_num_threads(),
        "precision": "bfloat16" if on_gpu else "float32",
        "torch": torch.__version__,
        "timm": timm.__version__,
        "softattn": softattn.__version__,
    }


def table(results: list[Measurement], title: str) -> Table:
    """A row for each model at each size."""
    drawn = Table(title=title, title_justify="left")
    drawn.add_column("model")
    for heading in ("pixels", "images/s", "of softmax", "ratio", "memory", "of softmax"):
        drawn.add_column(heading, justify="right")
    for ours, twin in zip(results[::2], results[1::2], strict=True):
        drawn.add_row(
            ours.model,
            f"{ours.size}²",
            _speed(ours),
            _speed(twin),
            _ratio(ours, twin),
            _memory(ours),
            _memory(twin),
        )
    return drawn


def _ratio(ours: Measurement, twin: Measurement) -> str:
    if ours.images_per_second is None or twin.images_per_second is None:
        return ""
    return f"{ours.images_per_second / twin.images_per_second:.2f}×"


def _speed(result: Measurement) -> str:
    speed = result.images_per_second
    return "out of memory" if speed is None else f"{speed:,.3g}"


def _memory(result: Measurement) -> str:
    return "" if result.peak_memory is None else f"{result.peak_memory / 2**30:.2f} GiB"


def main() -> None:
    """Measures, prints a table and writes the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL")
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 448, 896])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--training", action="store_true", help="forward and backward")
    parser.add_argument(
        "--landmarks", choices=("conv", "conv_pad", "avg", "kmeans"), default="conv", help="of SOFT"
    )
    parser.add_argument(
        "--pinv",
        choices=("minimax", "soft", "soft_norm_official"),
        help="the published one by default",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("out/imagenet/throughput.json"))
    arguments = parser.parse_args()
    work = Work(torch.device(arguments.device), arguments.batch_size, arguments.training)
    console = Console()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=len(arguments.models) * len(arguments.sizes))
        results = measure(
            arguments.models,
            {"landmarks": arguments.landmarks, "pinv": arguments.pinv},
            arguments.sizes,
            work,
            lambda: progress.advance(task),
        )
    facts = environment(work.device) | {
        "batch_size": work.batch_size,
        "pass": "forward and backward" if work.training else "forward",
        "landmarks": arguments.landmarks,
        "pinv": arguments.pinv or "published",
    }
    title = ", ".join(f"{key} {value}" for key, value in facts.items())
    console.print(table(results, title))
    with replacing(arguments.out) as partial:
        content = facts | {"measurements": [asdict(result) for result in results]}
        partial.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
