"""A model in training: its state, and one update of it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from examples.training.errors import Diverged
from examples.training.randomness import seed_all

# The loss of a network on a batch, whatever a batch is.
Loss = Callable[[nn.Module, Any], Tensor]


class Training:
    """A model with its moving average, optimiser and schedule, and how far they are.

    Args:
        model: on the accelerator's device.
        loss: mean over a batch; the network that it is given is ``model`` as accelerate wraps it.
        optimizer: of the parameters of ``model``.
        schedule: of the optimiser, by updates.
        accelerator: with the number of batches of an update as its gradient accumulation.
        updates_per_epoch: number of updates in an epoch.
        seed: of everything random in an update.
        clip_grad: largest norm of the gradient.
        ema_decay: of the moving average of the weights; no average by default.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        schedule: Scheduler,
        accelerator: Accelerator,
        *,
        updates_per_epoch: int,
        seed: int,
        clip_grad: float,
        ema_decay: float | None = None,
    ) -> None:
        self.model = model
        self.loss = loss
        self.schedule = schedule
        self.accelerator = accelerator
        self.updates_per_epoch = updates_per_epoch
        self.seed = seed
        self.clip_grad = clip_grad
        self.average = ModelEmaV3(model, ema_decay) if ema_decay else None
        self.network, self.optimizer = accelerator.prepare(model, optimizer)
        self.updates = 0
        self._epoch_loss = torch.zeros((), device=accelerator.device)

    @property
    def epoch(self) -> int:
        """The epoch of the next update, from 0."""
        return self.updates // self.updates_per_epoch

    @property
    def updates_into_epoch(self) -> int:
        """Number of updates done in that epoch."""
        return self.updates % self.updates_per_epoch

    @property
    def learning_rate(self) -> float:
        """Learning rate of the last update."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def evaluated(self) -> nn.Module:
        """The model to evaluate and keep: the moving average if there is one."""
        return self.model if self.average is None else self.average.module

    def update(self, batches: Sequence[Any]) -> None:
        """One step of the optimiser, with the mean gradient over ``batches``."""
        if self.updates_into_epoch == 0:
            self._epoch_loss.zero_()
        self.network.train()
        self.schedule.step_update(self.updates)
        for step, batch in enumerate(batches):
            seed_all("update", self.seed, self.updates, step, self.accelerator.process_index)
            with self.accelerator.accumulate(self.network):
                loss = self.loss(self.network, batch)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.network.parameters(), self.clip_grad)
                self.optimizer.step()
                self.optimizer.zero_grad()
            # The value stays on the device, so that a GPU need not wait.
            self._epoch_loss += self.accelerator.reduce(loss.detach(), "mean") / len(batches)
        if self.average is not None:
            self.average.update(self.model)
        self.updates += 1

    def mean_loss(self) -> float:
        """Mean loss over the updates of the epoch so far, and over all processes.

        Raises:
            Diverged: the mean is not finite.
        """
        loss = float(self._epoch_loss) / ((self.updates - 1) % self.updates_per_epoch + 1)
        if not abs(loss) < float("inf"):
            raise Diverged(
                f"the loss is {loss} after update {self.updates}, in epoch {self.epoch}; a smaller "
                "lr, a longer warm-up or precision bf16 may help"
            )
        return loss

    def share_buffers(self) -> None:
        """Copies the buffers of the first process, which alone are saved, to all processes."""
        for buffer in self.evaluated.buffers():
            broadcast(buffer)

    def state_dict(self) -> dict[str, Any]:
        """All that ``load_state_dict`` needs to continue with the same bits."""
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
        """Returns to the state of ``state_dict``."""
        self.updates = state["updates"]
        self._epoch_loss.copy_(state["epoch_loss"])
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
