"""Evaluates a classifier on the images of a split.

    python -m examples.imagenet.evaluate --data PATH --checkpoint best.safetensors

PATH holds val/ with one folder for each class. ``torchrun`` or ``accelerate launch`` uses several
GPUs and machines.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jsonargparse import ArgumentParser
from timm.data import resolve_model_data_config
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, SumMetric
from torchmetrics.classification import MulticlassAccuracy

from examples.imagenet import loading
from examples.imagenet.checkpoint import Classifier, describe, load
from examples.imagenet.images import NO_LABEL, Sample, open_split
from examples.training.command import Precision, accelerated
from examples.training.errors import InputError
from examples.training.loading import Share
from examples.training.screen import Screen


@dataclass(frozen=True)
class Scores:
    """The quality of a classifier on a split.

    loss: mean cross-entropy, in nats.
    top1: share of images whose class has the largest logit.
    top5: share of images whose class is among the five largest, or all if there are fewer.
    images: number of images that were scored.
    unreadable: number of files that could not be read.
    images_per_second: of all processes together, reading included.
    """

    loss: float
    top1: float
    top5: float
    images: int
    unreadable: int
    images_per_second: float


@torch.inference_mode()
def score(
    model: nn.Module,
    batches: DataLoader[Sample],
    num_classes: int,
    accelerator: Accelerator,
    screen: Screen,
) -> Scores:
    """Scores ``model`` on the batches of all processes.

    Args:
        model: images (batch, channels, height, width) to logits (batch, num_classes).
        batches: of this process.
        num_classes: number of classes of the labels.
        accelerator: its device and precision are used.
        screen: for a bar, and for files that could not be read.
    """
    device = accelerator.device
    top1, top5 = (
        MulticlassAccuracy(
            num_classes, top_k=min(k, num_classes), average="micro", ignore_index=NO_LABEL
        ).to(device)
        for k in (1, 5)
    )
    loss, scored, failed = MeanMetric().to(device), SumMetric().to(device), SumMetric().to(device)
    model.eval()
    start = time.perf_counter()
    with screen.bar("evaluation", len(batches), "batches") as advance:
        for images, labels, unreadable in batches:
            screen.note_unreadable(unreadable)
            images, labels = (x.to(device, non_blocking=True) for x in (images, labels))
            with accelerator.autocast():
                logits = model(images).float()
            top1.update(logits, labels)
            top5.update(logits, labels)
            count = len(labels) - len(unreadable)
            if count:
                loss.update(F.cross_entropy(logits, labels, ignore_index=NO_LABEL), weight=count)
            scored.update(count)
            failed.update(len(unreadable))
            advance()
    total = int(scored.compute())
    return Scores(
        loss=float(loss.compute()),
        top1=float(top1.compute()),
        top5=float(top5.compute()),
        images=total,
        unreadable=int(failed.compute()),
        images_per_second=total / (time.perf_counter() - start),
    )


def evaluate(
    data: Path,
    checkpoint: Path,
    batch_size: int = 128,
    workers: int = min(8, os.cpu_count() or 1),
    precision: Precision = "auto",
    skip_unreadable: bool = False,
) -> None:
    """Prints the top-1 and top-5 accuracy of a checkpoint.

    Args:
        data: folder with val/, which has one folder for each class.
        checkpoint: a safetensors file of ``examples.imagenet.train`` or ``convert``.
        batch_size: images of one process in one forward pass.
        workers: processes that read images, for each process that evaluates.
        precision: of matrix products; auto is bf16 on a GPU that has it.
        skip_unreadable: skip files that cannot be read.
    """
    with accelerated(precision) as accelerator:
        screen = Screen(accelerator.is_main_process, skip_unreadable)
        classifier = describe(checkpoint)
        model: Any = load(checkpoint).to(accelerator.device)
        preparation = classifier.preparation or resolve_model_data_config(model)
        folder = open_split(data, "val")
        _check_classes(folder.classes, classifier, model.num_classes)
        share = Share.of(accelerator, workers)
        batches = loading.evaluation_batches(folder, preparation, batch_size, share)
        scores = score(model, batches, model.num_classes, accelerator, screen)
        screen.print(
            f"{checkpoint}, {classifier.name}: top-1 {scores.top1:.2%}, top-5 {scores.top5:.2%}, "
            f"loss {scores.loss:.4f} on {scores.images} images"
            + (f" ({scores.unreadable} unreadable)" if scores.unreadable else "")
            + f", {scores.images_per_second:.0f} images a second"
        )


def _check_classes(found: list[str], classifier: Classifier, num_classes: int) -> None:
    known = classifier.classes or found
    if found == known and len(found) == num_classes:
        return
    differing = ", ".join(sorted(set(found) ^ set(known)))
    raise InputError(
        f"the model has {num_classes} classes and val/ has {len(found)}"
        + (f"; only one of them has {differing}" if differing else "")
    )


def main(arguments: list[str] | None = None) -> None:
    """Evaluates as the command line says, or prints what is wrong with it."""
    parser = ArgumentParser(
        prog="python -m examples.imagenet.evaluate", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_function_arguments(evaluate, skip={"skip_unreadable"})
    parser.add_argument(
        "--skip_unreadable", action="store_true", help="skip files that cannot be read"
    )
    evaluate(**parser.parse_args(arguments).as_dict())


if __name__ == "__main__":
    main()
