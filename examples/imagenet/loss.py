"""The loss of a classifier in training."""

import torch
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn import functional as F

from examples.imagenet.recipe import Recipe

# Images (batch, channels, height, width) and labels (batch,).
Batch = tuple[Tensor, Tensor]


class ClassificationLoss:
    """Cross-entropy with mixup, cutmix and label smoothing, as the recipe has them.

    Args:
        recipe: of the training.
        num_classes: number of classes of the labels.
        device: of the network.
        memory_format: of the images.
    """

    def __init__(
        self,
        recipe: Recipe,
        num_classes: int,
        device: torch.device,
        memory_format: torch.memory_format,
    ) -> None:
        self.label_smoothing = recipe.label_smoothing
        self.device = device
        self.memory_format = memory_format
        self.mixup = (
            Mixup(
                recipe.mixup,
                recipe.cutmix,
                label_smoothing=recipe.label_smoothing,
                num_classes=num_classes,
            )
            if recipe.mixes
            else None
        )

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        """Mean over a batch, in nats."""
        images, labels = batch
        images = images.to(self.device, non_blocking=True, memory_format=self.memory_format)
        labels = labels.to(self.device, non_blocking=True)
        if self.mixup is None:
            return F.cross_entropy(network(images), labels, label_smoothing=self.label_smoothing)
        images, mixed_labels = self.mixup(images, labels)
        return F.cross_entropy(network(images), mixed_labels)
