"""Random numbers that depend only on where they are used, so that no generator has to be saved."""

import hashlib

from timm.utils import random_seed


def seed_all(*place: str | int) -> None:
    """Seeds Python, NumPy and PyTorch on all devices.

    A training calls this before it draws: for an image with the seed, the epoch and the image, for
    an update with the seed, the update and the process. The numbers that are drawn then depend
    neither on the number of workers nor on whether the run was interrupted.

    Args:
        place: what distinguishes this use from all others.
    """
    digest = hashlib.sha256(repr(place).encode()).digest()
    random_seed(int.from_bytes(digest[:4], "little"))
