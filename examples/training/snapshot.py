"""The state of a training in one file, from which an interrupted run continues.

``Accelerator.save_state`` writes a folder of several files. One file can be replaced as a whole, so
that a crash while saving leaves the last snapshot intact.
"""

from pathlib import Path
from typing import Any

import torch

from examples.training.atomic import replacing
from examples.training.errors import InputError


def save(path: Path, state: dict[str, Any], circumstances: dict[str, Any]) -> None:
    """Writes a state, whole or not at all.

    Args:
        path: of the file.
        state: tensors, numbers, strings, and lists and dicts of them.
        circumstances: what must be the same for a run to continue.
    """
    with replacing(path) as partial:
        torch.save({"circumstances": circumstances, "state": state}, partial)


def load(path: Path, circumstances: dict[str, Any]) -> dict[str, Any]:
    """The state in a file of ``save``.

    Raises:
        InputError: the file cannot be read, or its circumstances differ; the message lists how.
    """
    try:
        file = torch.load(path, map_location="cpu", weights_only=True)
        before, state = file["circumstances"], file["state"]
    # A damaged or foreign file makes PyTorch raise errors of many types.
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as a snapshot; remove it to start again, or give another --out "
            f"({type(error).__name__}: {error})"
        ) from error
    differing = [
        _difference(name, before.get(name), value)
        for name, value in circumstances.items()
        if before.get(name) != value
    ]
    if differing:
        raise InputError(
            f"{path} belongs to another run; give another --out, or make this run the same\n  "
            + "\n  ".join(differing)
        )
    return state


def _difference(name: str, then: Any, now: Any) -> str:
    if isinstance(then, list) and isinstance(now, list):
        return f"{name}: only then or only now {', '.join(map(str, set(then) ^ set(now)))}"
    return f"{name}: {then} then, {now} now"
