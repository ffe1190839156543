"""Randomness that follows from where it is used, so that nothing random has to be saved."""

import hashlib
import random

import numpy as np
import torch


def seed_all(*place: str | int) -> None:
    """Seeds Python, NumPy and PyTorch, on all devices.

    A training seeds before it draws: for an image from the seed, the epoch and the image, for an
    update from the seed, the update and the process. What is drawn then depends neither on the
    number of workers nor on whether the run was interrupted.

    Args:
        place: what distinguishes this use from all others.
    """
    digest = hashlib.sha256(repr(place).encode()).digest()
    state = int.from_bytes(digest[:4], "little")
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)
