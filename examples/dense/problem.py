"""What a training needs to know about its problem: detection or segmentation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from examples.dense.recipe import Recipe
from examples.dense.samples import Split, Truth
from examples.training.history import Panel
from examples.training.screen import Screen


@dataclass(frozen=True)
class Data:
    """A data set.

    train: samples for training.
    val: samples for evaluation.
    classes: names of the classes of both, by label.
    """

    train: Split
    val: Split
    classes: list[str]


class Meter(Protocol):
    """Scores of a model, gathered over samples."""

    def update(self, found: Truth, truth: Truth) -> None:
        """Adds an image: what the model found, and what there is."""

    def compute(self) -> dict[str, float]:
        """Scores over the images of all processes, by name."""


RecipeT = TypeVar("RecipeT", bound=Recipe)


class Problem(ABC, Generic[RecipeT]):
    """Detection or segmentation.

    room: of the examples, such as "detection".
    recipe: of a training.
    score: which of the meter's scores chooses the best epoch.
    panels: of the picture of the history.
    """

    room: str
    recipe: type[RecipeT]
    score: str
    panels: Sequence[Panel]

    @abstractmethod
    def open(self, folder: Path, model: str, screen: Screen) -> Data:
        """Finds and checks the images and the truth in a folder.

        Args:
            folder: of the data set.
            model: name of the model that needs them.
            screen: gets a line for each broken sample.

        Raises:
            InputError: files are missing, or a sample is broken and is not to be skipped.
        """

    @abstractmethod
    def create(self, name: str, **options: Any) -> Any:
        """A model by name, with the options of its ``create_model``."""

    @abstractmethod
    def preparation(self, recipe: RecipeT) -> dict[str, Any]:
        """What ``predict`` needs to know about images beside the model."""

    @abstractmethod
    def schedule(self, recipe: RecipeT, optimizer: Optimizer, updates_per_epoch: int) -> Scheduler:
        """The learning rate by updates."""

    @abstractmethod
    def augment(self, recipe: RecipeT, image: Tensor, truth: Truth) -> tuple[Tensor, Truth]:
        """A random variant of a sample, as the model takes it in training."""

    @abstractmethod
    def loss(
        self, network: nn.Module, model: Any, images: list[Tensor], truths: list[Truth]
    ) -> Tensor:
        """The mean loss over a batch.

        Args:
            network: the model as accelerate wraps it.
            model: itself.
            images: on the device of the model.
            truths: on the same device.
        """

    @abstractmethod
    def predict(self, model: Any, image: Tensor, preparation: dict[str, Any]) -> Truth:
        """What a model in evaluation finds in an image (3, height, width) from 0 to 1."""

    @abstractmethod
    def meter(self, model: Any, classes: int) -> Meter:
        """Scores of the model, without images so far."""

    @abstractmethod
    def draw(self, image: Tensor, found: Truth, classes: Sequence[str]) -> Tensor:
        """An image (3, height, width) of uint8, with what was found or what there is in it."""
