"""An interrupted training on disk, and going on from there."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from examples.imagenet.atomic import replacing
from examples.imagenet.errors import InputError
from examples.imagenet.history import Epoch, History
from examples.imagenet.recipe import Recipe
from examples.imagenet.training import Training


def circumstances(
    recipe: Recipe, images: int, classes: list[str], processes: int
) -> dict[str, Any]:
    """What must be the same for a run to go on: the recipe, the images and the processes."""
    return {
        **asdict(recipe),
        "training images": images,
        "classes": classes,
        "processes": processes,
    }


def save(path: Path, training: Training, history: History, circumstances: dict[str, Any]) -> None:
    """Writes all that ``resume`` needs, whole or not at all."""
    with replacing(path) as partial:
        torch.save(
            {
                "circumstances": circumstances,
                "training": training.state_dict(),
                "history": [asdict(epoch) for epoch in history.epochs],
            },
            partial,
        )


def resume(path: Path, training: Training, history: History, circumstances: dict[str, Any]) -> None:
    """Takes ``training`` and ``history`` to where the run in ``path`` was.

    Raises:
        InputError: that run was another; what differs is listed.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    differing = [
        f"{name}: {state['circumstances'].get(name)} then, {value} now"
        for name, value in circumstances.items()
        if state["circumstances"].get(name) != value
    ]
    if differing:
        raise InputError(
            f"{path} is of another run; give another --out, or make this one the same\n  "
            + "\n  ".join(differing)
        )
    training.load_state_dict(state["training"])
    history.epochs[:] = [Epoch(**epoch) for epoch in state["history"]]
