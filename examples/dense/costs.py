"""Time and memory of one training step on a CPU: SOFT beside its softmax twin, by resolution."""

import json
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from examples.training.atomic import replacing

# Makes a model by its name, ``published`` as for ``create_model``, and images of a height and a
# width. The result computes the loss of the model on these images.
Prepare = Callable[[str, bool, int, int], Callable[[], Tensor]]

# Each kind of attention, as a function of the name of a SOFT model: a name, and ``published``.
KINDS: dict[str, Callable[[str], tuple[str, bool]]] = {
    "49 means": lambda name: (name, False),
    "published": lambda name: (name, True),
    "softmax": lambda name: (name.replace("soft_norm", "softmax"), False),
}


@dataclass(frozen=True)
class Cost:
    """One training step.

    model: its name.
    kind: of its attention, one of ``KINDS``.
    height: of the images, in pixels.
    width: of the images, in pixels.
    forward_seconds: from the images to the loss.
    step_seconds: with the backward pass.
    peak_bytes: most memory of the process, with Python and PyTorch.
    """

    model: str
    kind: str
    height: int
    width: int
    forward_seconds: float
    step_seconds: float
    peak_bytes: int


def measure(prepare: Prepare, model: str, kind: str, height: int, width: int, threads: int) -> Cost:
    """Measures a step in this process, which should be new."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    loss_of_images = prepare(*KINDS[kind](model), height, width)
    start = time.perf_counter()
    loss = loss_of_images()
    forward = time.perf_counter() - start
    loss.backward()
    seconds = time.perf_counter() - start
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Cost(model, kind, height, width, forward, seconds, peak)


def main(
    room: str, description: str, prepare: Prepare, models: list[str], sizes: list[str]
) -> None:
    """Measures, prints a table and writes the figures.

    Args:
        room: of the examples.
        description: of the command.
        prepare: a step.
        models: whose costs are measured by default.
        sizes: of images, such as "512x512", by default.
    """
    parser = ArgumentParser(prog=f"python -m examples.{room}.costs", description=description)
    parser.add_argument("--models", nargs="+", default=models, help="names of SOFT models")
    parser.add_argument("--sizes", nargs="+", default=sizes, help="HEIGHTxWIDTH in pixels")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), help="of attention")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(f"out/{room}/costs.json"))
    options = parser.parse_args()
    cases = [
        (prepare, model, kind, *map(int, size.split("x")), options.threads)
        for model in options.models
        for size in options.sizes
        for kind in options.kinds
    ]
    costs = []
    # Each step has a process of its own, so that the memory is that of the step.
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for case in track(cases, "measuring"):
            costs.append(pool.apply(measure, case))
    Console().print(_table(costs))
    with replacing(options.out) as partial:
        facts = {"torch": torch.__version__, "threads": options.threads, "device": "CPU"}
        content = facts | {"costs": [asdict(cost) for cost in costs]}
        partial.write_text(json.dumps(content, indent=2) + "\n")


def _table(costs: list[Cost]) -> Table:
    table = Table()
    table.add_column("model", no_wrap=True)
    for heading in ("pixels", "attention", "forward", "step", "memory"):
        table.add_column(heading, justify="right")
    for cost in costs:
        table.add_row(
            cost.model,
            f"{cost.height} × {cost.width}",
            cost.kind,
            f"{cost.forward_seconds:.3g} s",
            f"{cost.step_seconds:.3g} s",
            f"{cost.peak_bytes / 2**30:.2f} GiB",
        )
    return table
