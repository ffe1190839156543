"""A model in training: its state, and what one update does."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F

from examples.imagenet.randomness import seed_all
from examples.imagenet.recipe import Recipe


class Diverged(ArithmeticError):
    """The loss is not finite any more."""


class Training:
    """A model, its moving average, optimiser and schedule, and how far they are.

    Args:
        recipe: of the training.
        model: to train; it is moved to the accelerator's device.
        num_classes: of the labels.
        updates_per_epoch: as ``loading.updates_per_epoch`` has it.
        accelerator: with the recipe's gradient accumulation.
        channels_last: whether images and convolutions keep their channels adjacent in memory.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        num_classes: int,
        updates_per_epoch: int,
        accelerator: Accelerator,
        channels_last: bool = False,
    ) -> None:
        self.recipe = recipe
        self.num_classes = num_classes
        self.updates_per_epoch = updates_per_epoch
        self.accelerator = accelerator
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(accelerator.device).to(memory_format=self.memory_format)
        self.average = ModelEmaV3(self.model, recipe.ema_decay) if recipe.ema_decay else None
        optimizer = create_optimizer_v2(
            self.model, opt="adamw", lr=recipe.lr, weight_decay=recipe.weight_decay
        )
        self.schedule, _ = create_scheduler_v2(
            optimizer,
            num_epochs=recipe.epochs,
            min_lr=recipe.min_lr,
            warmup_lr=recipe.warmup_lr,
            warmup_epochs=recipe.warmup_epochs,
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
        )
        self.network, self.optimizer = accelerator.prepare(self.model, optimizer)
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
        self.updates = 0
        self._epoch_loss = torch.zeros((), device=accelerator.device)

    @property
    def epoch(self) -> int:
        """The epoch of the next update, from 0."""
        return self.updates // self.updates_per_epoch

    @property
    def updates_into_epoch(self) -> int:
        """Updates done in that epoch."""
        return self.updates % self.updates_per_epoch

    @property
    def learning_rate(self) -> float:
        """Of the last update."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def evaluated(self) -> nn.Module:
        """What is evaluated and kept: the moving average, where there is one."""
        return self.model if self.average is None else self.average.module

    def update(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        """One step of the optimiser over batches of images and labels."""
        if self.updates_into_epoch == 0:
            self._epoch_loss.zero_()
        self.network.train()
        self.schedule.step_update(self.updates)
        for step, (images, labels) in enumerate(batches):
            seed_all("update", self.recipe.seed, self.updates, step, self.accelerator.process_index)
            with self.accelerator.accumulate(self.network):
                loss = self._loss(*self._on_device(images, labels))
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(
                        self.network.parameters(), self.recipe.clip_grad
                    )
                self.optimizer.step()
                self.optimizer.zero_grad()
            # No value is read, so that a GPU need not wait.
            self._epoch_loss += self.accelerator.reduce(loss.detach(), "mean") / len(batches)
        if self.average is not None:
            self.average.update(self.model)
        self.updates += 1

    def mean_loss(self) -> float:
        """Mean over the updates of the epoch so far, and over all processes.

        Raises:
            Diverged: it is not finite.
        """
        loss = float(self._epoch_loss) / ((self.updates - 1) % self.updates_per_epoch + 1)
        if not abs(loss) < float("inf"):
            raise Diverged(
                f"the loss is {loss} after update {self.updates}, in epoch {self.epoch}; a smaller "
                "lr, a longer warm-up or precision bf16 may help"
            )
        return loss

    def share_buffers(self) -> None:
        """Gives all processes the buffers of the first, which alone are kept."""
        for buffer in self.evaluated.buffers():
            broadcast(buffer)

    def state_dict(self) -> dict[str, Any]:
        """All that ``load_state_dict`` needs to go on from here, to the bit."""
        scaler = self.accelerator.scaler
        return {
            "updates": self.updates,
            "epoch_loss": self._epoch_loss,
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where ``state_dict`` was taken."""
        self.updates = state["updates"]
        self._epoch_loss.copy_(state["epoch_loss"])
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _on_device(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        device = self.accelerator.device
        images = images.to(device, non_blocking=True, memory_format=self.memory_format)
        return images, labels.to(device, non_blocking=True)

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        if self.mixup is None:
            logits = self.network(images)
            return F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        images, mixed = self.mixup(images, labels)
        return F.cross_entropy(self.network(images), mixed)
