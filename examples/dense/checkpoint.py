"""Trained detectors and segmenters in safetensors files."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from examples.dense.problem import Problem
from examples.training import weights
from examples.training.errors import InputError


@dataclass(frozen=True)
class Description:
    """The model that the weights in a file belong to.

    name: for ``create_model``.
    options: of ``create_model``, including ``num_classes``.
    classes: names of the classes by label.
    preparation: of ``Problem.predict``.
    """

    name: str
    options: dict[str, Any]
    classes: list[str]
    preparation: dict[str, Any]


def save(path: Path, problem: Problem[Any], description: Description, model: nn.Module) -> None:
    """Writes the weights of a model, whole or not at all."""
    weights.save(path, problem.room, asdict(description), model.state_dict())


def load(path: Path, problem: Problem[Any]) -> tuple[Description, nn.Module]:
    """The model in a file of ``save``.

    Raises:
        InputError: the file cannot be read, or holds no model for this problem.
    """
    description = weights.describe(path, problem.room)
    if description is None:
        raise InputError(
            f"{path} is no model for {problem.room}; examples.{problem.room}.train writes them"
        )
    described = Description(**description)
    model = problem.create(described.name, **described.options)
    model.load_state_dict(weights.read(path))
    return described, model
