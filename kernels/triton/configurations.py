"""How each kernel cuts its work: a table instead of a search at the first call.

An entry is ``(tokens, landmarks, warps, stages)``. It was found by compiling: up to 128 features
nothing spills to memory on CUDA, whatever the kernel is asked for, and a program takes at most
99 KiB of shared memory there, as compute capability 8.6 has, and 64 KiB on AMD. Where a kernel has
two entries, the first is for landmarks that fit into its one block, the second for more.
"""

from typing import NamedTuple

import torch

from softattn.kernels.launching import Device, block_of


class Configuration(NamedTuple):
    """tokens, landmarks: of one tile. warps, stages: Triton's."""

    tokens: int
    landmarks: int
    warps: int
    stages: int


# kernel: {features up to: entries}
_Table = dict[str, dict[int, tuple[tuple[int, int, int, int], ...]]]

HALF: _Table = {
    "tokens_to_landmarks": {
        64: ((64, 64, 4, 3),),
        128: ((32, 64, 4, 2),),
        256: ((16, 16, 4, 1),),
    },
}
FLOAT32: _Table = {}
# Warp groups (compute capability 9) multiply larger tiles from fewer registers.
HALF_ON_WARP_GROUPS: _Table = {}


def choose(
    kernel: str, d: int, d_v: int, m: int, dtype: torch.dtype, device: Device
) -> Configuration:
    """The tile of ``kernel`` for d and d_v features and m landmarks.

    Args:
        kernel: a name in the table.
        d: features of tokens and landmarks.
        d_v: features of values.
        m: landmarks, or what stands in their place.
        dtype: of the tokens.
        device: where it runs.
    """
    table = FLOAT32 if dtype == torch.float32 else HALF
    widths = table[kernel]
    if dtype != torch.float32 and device.generation == 9:
        widths = widths | HALF_ON_WARP_GROUPS.get(kernel, {})
    features = max(d, d_v)
    entries = widths[min(width for width in widths if features <= width)]
    block = block_of(m)
    fitting = next((entry for entry in entries if block <= entry[1]), entries[-1])
    tokens, landmarks, warps, stages = fitting
    return Configuration(tokens, min(block, landmarks), warps, stages)
