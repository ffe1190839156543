"""An interrupted training on disk, and going on from there."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from examples.imagenet.atomic import replacing
from examples.imagenet.errors import InputError
from examples.imagenet.history import Epoch, History
from examples.imagenet.training import Training


def save(path: Path, training: Training, history: History, circumstances: dict[str, Any]) -> None:
    """Writes all that ``resume`` needs, whole or not at all.

    Args:
        path: of the file.
        training: as far as it is.
        history: as far as it is.
        circumstances: what must be the same for a run to go on.
    """
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
        InputError: the file cannot be read, or that run was another; what differs is listed.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        before = state["circumstances"]
        epochs = [Epoch(**epoch) for epoch in state["history"]]
    # What a damaged or foreign file makes PyTorch raise is of many kinds.
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as a snapshot; remove it to begin anew, or give another --out "
            f"({type(error).__name__}: {error})"
        ) from error
    differing = [
        _difference(name, before.get(name), value)
        for name, value in circumstances.items()
        if before.get(name) != value
    ]
    if differing:
        raise InputError(
            f"{path} is of another run; give another --out, or make this one the same\n  "
            + "\n  ".join(differing)
        )
    training.load_state_dict(state["training"])
    history.epochs[:] = epochs


def _difference(name: str, then: Any, now: Any) -> str:
    if isinstance(then, list) and isinstance(now, list):
        return f"{name}: only then or only now {', '.join(map(str, set(then) ^ set(now)))}"
    return f"{name}: {then} then, {now} now"
