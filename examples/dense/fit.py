"""The training of a detector or segmenter, from a recipe and samples to weights."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from examples.dense import checkpoint, samples
from examples.dense.backbone import backbone_of, load_classifier
from examples.dense.evaluate import evaluate, on
from examples.dense.problem import Data, Problem
from examples.dense.recipe import Recipe
from examples.training.errors import InputError
from examples.training.history import Epoch, History
from examples.training.loading import Share
from examples.training.loop import Loop, Settings
from examples.training.randomness import seed_all
from examples.training.screen import Screen
from examples.training.state import Training

# Images and truths of a forward pass.
Batch = tuple[list[Tensor], list[samples.Truth]]


def fit(
    problem: Problem[Any],
    recipe: Recipe,
    data: Data,
    settings: Settings,
    accelerator: Accelerator,
    screen: Screen,
) -> Epoch:
    """Trains a model as ``training.loop.Loop`` does, and returns the best epoch.

    Raises:
        Interrupted: by a signal, after a snapshot.
        InputError: the recipe, the samples and the files in ``settings.out`` do not fit together.
    """
    share = Share.of(accelerator, settings.workers)
    batches = recipe.accumulate * share.processes
    whole = samples.order(data.train, recipe.batch_size, batches, recipe.seed, epoch=0)
    training = start(problem, recipe, data, len(whole) // batches, settings, accelerator, screen)
    loop = Loop(
        _DenseTask(problem, recipe, data, training, share, settings.out, screen),
        training,
        History(settings.out, problem.score, problem.panels),
        recipe=recipe,
        data={"training images": len(data.train), "classes": data.classes},
        settings=settings,
        screen=screen,
    )
    return loop.run()


def start(
    problem: Problem[Any],
    recipe: Recipe,
    data: Data,
    updates_per_epoch: int,
    settings: Settings,
    accelerator: Accelerator,
    screen: Screen,
) -> Training:
    """A training before its first update.

    Raises:
        InputError: there is no such model, or the file of its backbone does not fit.
    """
    seed_all("model", recipe.seed)
    try:
        model = problem.create(recipe.model, num_classes=len(data.classes), **recipe.model_options)
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from error
    if recipe.backbone is not None:
        loaded = load_classifier(model, Path(recipe.backbone))
        screen.print(f"{recipe.backbone}: {loaded}")
    backbone_of(model).set_grad_checkpointing(settings.grad_checkpointing)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        # The few images of one process are too few for the statistics of a batch norm.
        model = convert_sync_batchnorm(model)
    memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
    model = model.to(accelerator.device).to(memory_format=memory_format)
    optimizer = torch.optim.AdamW(_parameter_groups(model, recipe), lr=recipe.lr)
    return Training(
        model,
        partial(_loss, problem, model),
        optimizer,
        problem.schedule(recipe, optimizer, updates_per_epoch),
        accelerator,
        updates_per_epoch=updates_per_epoch,
        seed=recipe.seed,
        clip_grad=recipe.clip_grad,
    )


class _DenseTask:
    """The task of the loop; see ``training.loop.Task``."""

    samples = "images"

    def __init__(
        self,
        problem: Problem[Any],
        recipe: Recipe,
        data: Data,
        training: Training,
        share: Share,
        out: Path,
        screen: Screen,
    ) -> None:
        self.problem = problem
        self.recipe = recipe
        self.data = data
        self.training = training
        self.share = share
        self.out = out
        self.screen = screen
        self.samples_per_update = recipe.batch_size * recipe.accumulate * share.processes
        self.description = checkpoint.Description(
            recipe.model,
            {**recipe.model_options, "num_classes": len(data.classes)},
            data.classes,
            problem.preparation(recipe),
        )

    def batches(self, epoch: int, first_update: int) -> Iterator[Sequence[Batch]]:
        recipe = self.recipe
        together = recipe.accumulate * self.share.processes
        whole = samples.order(self.data.train, recipe.batch_size, together, recipe.seed, epoch)
        augment = partial(self.problem.augment, recipe)
        epoch_samples = samples.TrainingSamples(self.data.train, augment, recipe.seed, epoch)
        loader = samples.training_batches(epoch_samples, whole, self.share, first_update * together)
        batches = iter(loader)
        # Each update takes as many batches from the one iterator.
        for update in zip(*[batches] * recipe.accumulate, strict=True):
            for *_, broken in update:
                self.screen.note_unreadable(broken)
            yield [(images, truths) for images, truths, _ in update]

    def evaluate(self) -> dict[str, float]:
        training = self.training
        return evaluate(
            self.problem,
            training.evaluated,
            samples.evaluation_batches(self.data.val, self.share),
            self.data.classes,
            self.description.preparation,
            self.out / "predictions" / f"epoch_{training.epoch:03d}.png",
            training.accelerator,
            self.screen,
        )

    def save_weights(self, path: Path) -> None:
        checkpoint.save(path, self.problem, self.description, self.training.evaluated)


def _loss(problem: Problem[Any], model: nn.Module, network: nn.Module, batch: Batch) -> Tensor:
    device = next(model.parameters()).device
    images = [image.to(device, non_blocking=True) for image in batch[0]]
    return problem.loss(network, model, images, [on(truth, device) for truth in batch[1]])


def _parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups of parameters for AdamW; the first has the learning rate that is shown."""
    names = [name for name, _ in model.named_parameters()]
    embeddings = [name for name in names if name.endswith(("pos_embed", "cls_token"))]
    of_backbone = set(backbone_of(model).parameters())
    return [
        {**group, "params": [p for p in group["params"] if (p in of_backbone) is inside], "lr": lr}
        for inside, lr in ((False, recipe.lr), (True, recipe.backbone_lr * recipe.lr))
        for group in param_groups_weight_decay(
            model, recipe.weight_decay, no_weight_decay_list=embeddings
        )
    ]
