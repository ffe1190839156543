"""Accuracy of a classifier on the images of a split."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, SumMetric
from torchmetrics.classification import MulticlassAccuracy

from examples.imagenet.images import NO_LABEL, Sample


@dataclass(frozen=True)
class Scores:
    """What a split says of a classifier.

    loss: mean cross-entropy, in nats.
    top1: share of images whose class has the largest logit.
    top5: share of images whose class is among the five largest, or all there are.
    images: that were scored.
    unreadable: files that could not be read.
    images_per_second: of all processes together, reading included.
    """

    loss: float
    top1: float
    top5: float
    images: int
    unreadable: int
    images_per_second: float


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: DataLoader[Sample],
    num_classes: int,
    accelerator: Accelerator,
    *,
    note_unreadable: Callable[[list[str]], None],
    advance: Callable[[], None],
) -> Scores:
    """Scores ``model`` on the batches of all processes.

    Args:
        model: images (batch, channels, height, width) to logits (batch, num_classes).
        batches: those of this process.
        num_classes: of the labels.
        accelerator: whose device and precision are used.
        note_unreadable: is told of files that could not be read, and may raise.
        advance: is told of each batch that was scored.
    """
    top1, top5 = (
        MulticlassAccuracy(
            num_classes, top_k=min(k, num_classes), average="micro", ignore_index=NO_LABEL
        ).to(accelerator.device)
        for k in (1, 5)
    )
    loss = MeanMetric().to(accelerator.device)
    scored, failed = SumMetric().to(accelerator.device), SumMetric().to(accelerator.device)
    model.eval()
    start = time.perf_counter()
    for images, labels, paths in batches:
        note_unreadable(paths)
        images = images.to(accelerator.device, non_blocking=True)
        labels = labels.to(accelerator.device, non_blocking=True)
        with accelerator.autocast():
            logits = model(images).float()
        top1.update(logits, labels)
        top5.update(logits, labels)
        count = len(labels) - len(paths)
        if count:
            loss.update(F.cross_entropy(logits, labels, ignore_index=NO_LABEL), weight=count)
        scored.update(count)
        failed.update(len(paths))
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
