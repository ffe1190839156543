"""The scores of a detector or segmenter on the samples of a split."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as F

from examples.dense import pictures
from examples.dense.problem import Problem
from examples.dense.samples import Sample, Truth
from examples.training.screen import Screen

# Images of the picture that shows what the model finds.
SHOWN = 4


@torch.inference_mode()
def evaluate(
    problem: Problem[Any],
    model: nn.Module,
    batches: DataLoader[Sample],
    classes: Sequence[str],
    preparation: dict[str, Any],
    picture: Path,
    accelerator: Accelerator,
    screen: Screen,
) -> dict[str, float]:
    """Scores over the images of all processes, and seconds for an image.

    Args:
        problem: of the model.
        model: to score.
        batches: of this process, of one image each.
        classes: names of the classes by label.
        preparation: of ``Problem.predict``.
        picture: to write, of the first images with the truth above and what was found below.
        accelerator: its device and precision are used.
        screen: for a bar, and for broken samples.
    """
    meter = problem.meter(model, len(classes))
    pairs: list[tuple[Tensor, Tensor]] = []
    model.eval()
    seconds, images = 0.0, 0
    with screen.bar("evaluation", len(batches), "images") as advance:
        for batch, truths, broken in batches:
            screen.note_unreadable(broken)
            for image, truth in zip(batch, truths, strict=True) if not broken else ():
                start = time.perf_counter()
                with accelerator.autocast():
                    found = problem.predict(model, image.to(accelerator.device), preparation)
                found = on(found, "cpu")
                seconds, images = seconds + time.perf_counter() - start, images + 1
                meter.update(found, truth)
                if len(pairs) < SHOWN:
                    drawn = F.to_dtype(image, torch.uint8, scale=True)
                    pairs.append(
                        (problem.draw(drawn, truth, classes), problem.draw(drawn, found, classes))
                    )
            advance()
    if accelerator.is_main_process and pairs:
        pictures.compare(picture, pairs)
    spent = gather_object([(seconds, images)])
    total, count = (sum(column) for column in zip(*spent, strict=True))
    return {**meter.compute(), "seconds_per_image": total / max(1, count)}


def on(truth: Truth, device: torch.device | str) -> Truth:
    """The same truth, on a device."""
    # A copy to the CPU that does not block would be read before it is complete.
    non_blocking = torch.device(device).type != "cpu"
    return {name: value.to(device, non_blocking=non_blocking) for name, value in truth.items()}
