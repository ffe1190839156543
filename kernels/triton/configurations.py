"""How each kernel cuts its work: a table instead of a search at the first call."""

from typing import NamedTuple

import torch

from softattn.kernels.launching import Device, block_of


class Configuration(NamedTuple):
    """tokens, landmarks: of one tile. warps, stages: Triton's."""

    tokens: int
    landmarks: int
    warps: int
    stages: int


def choose(
    kernel: str, d: int, d_v: int, m: int, dtype: torch.dtype, device: Device
) -> Configuration:
    block_m = min(block_of(m), 64)
    return Configuration(64, block_m, 4, 2)
