"""How each kernel cuts its work: a table instead of a search at the first call.

An entry is ``(tokens, landmarks, warps, stages)``, and ``registers`` where fewer than the compiler
would take let more programs run at once. Entries were found by compiling: on CUDA a program takes
at most 99 KiB of shared memory, as compute capability 8.6 has, and up to 128 features
little spills to memory in half precision, see ``tests/triton/test_compilation.py``; on AMD a
program takes at most 64 KiB. Those for compute capability 9 were chosen by their times. Where a
kernel has several entries, the first whose block holds all landmarks is taken, else the last.
"""

import functools
from typing import NamedTuple

import torch

from softattn.kernels.devices import Device
from softattn.kernels.launching import block_of


class Configuration(NamedTuple):
    """tokens, landmarks: of one tile. warps, stages: Triton's. registers: at most, of a thread."""

    tokens: int
    landmarks: int
    warps: int
    stages: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """Triton's options of a launch."""
        options = {"num_warps": self.warps, "num_stages": self.stages}
        return options if self.registers is None else options | {"maxnreg": self.registers}


Entries = tuple[tuple[int, ...], ...]
# kernel: {features up to: entries}; of "newton" and "middle_factor" the features are landmarks.
Table = dict[str, dict[int, Entries]]

HALF: Table = {
    "tokens_to_landmarks": {
        64: ((64, 64, 4, 3),),
        128: ((32, 64, 4, 3),),
        256: ((32, 32, 8, 2),),
    },
    "landmarks_to_tokens": {
        64: ((64, 64, 4, 3), (64, 64, 4, 1)),
        128: ((64, 64, 4, 2), (64, 32, 4, 2)),
        256: ((32, 32, 8, 2),),
    },
    "landmarks_to_tokens_diagonal": {
        64: ((64, 64, 4, 3), (32, 64, 4, 1)),
        128: ((32, 64, 4, 2), (32, 32, 4, 1)),
        256: ((32, 32, 8, 2),),
    },
    "quotient_gradient": {
        64: ((64, 64, 4, 1),),
        128: ((32, 64, 4, 1),),
        256: ((32, 32, 8, 1),),
    },
    "quotient_gradient_diagonal": {
        64: ((32, 64, 4, 1),),
        128: ((16, 64, 4, 1), (32, 32, 4, 2)),
        256: ((32, 32, 8, 1),),
    },
    "token_gradient": {
        64: ((32, 64, 4, 1), (32, 64, 4, 1)),
        128: ((32, 32, 4, 1), (16, 32, 4, 1)),
        256: ((16, 16, 8, 1),),
    },
    "token_gradient_diagonal": {
        64: ((16, 64, 4, 1),),
        128: ((16, 32, 4, 1),),
        256: ((16, 16, 8, 1),),
    },
    "near_field_output": {
        64: ((32, 64, 4, 1), (16, 128, 8, 1)),
        128: ((32, 64, 8, 1),),
    },
    "near_field_gradient": {
        64: ((16, 64, 4, 1), (16, 128, 8, 1)),
        128: ((16, 64, 8, 1),),
    },
    "landmark_weights": {
        64: ((32, 32, 4, 1),),
        128: ((16, 16, 8, 1),),
    },
    "nearest_landmarks": {
        128: ((32, 64, 4, 2),),
        256: ((32, 32, 8, 2),),
    },
    "cluster_sums": {
        64: ((64, 64, 4, 3),),
        128: ((32, 64, 4, 3),),
        256: ((32, 32, 8, 2),),
    },
    "gaussian_kernel": {256: ((32, 32, 4, 1),)},
    "gaussian_kernel_gradient": {
        64: ((32, 32, 4, 1),),
        128: ((16, 32, 4, 1),),
        256: ((32, 32, 8, 1),),
    },
}
# The parts that keep float32's digits take twice the registers and the shared memory.
FLOAT32: Table = {
    "tokens_to_landmarks": {
        64: ((32, 64, 4, 1),),
        256: ((16, 16, 8, 1),),
    },
    "landmarks_to_tokens": {
        64: ((32, 64, 4, 2), (32, 32, 4, 2)),
        128: ((16, 32, 8, 1), (16, 32, 4, 1)),
        256: ((16, 16, 8, 1),),
    },
    "landmarks_to_tokens_diagonal": {
        64: ((32, 32, 4, 2), (16, 32, 4, 1)),
        128: ((16, 32, 4, 1), (16, 16, 8, 1)),
        256: ((16, 16, 8, 1),),
    },
    "quotient_gradient": {
        64: ((16, 64, 4, 1),),
        256: ((16, 16, 8, 1),),
    },
    "quotient_gradient_diagonal": {
        64: ((16, 64, 4, 1), (16, 32, 4, 1)),
        256: ((16, 16, 8, 1),),
    },
    "token_gradient": {
        64: ((16, 32, 4, 1),),
        256: ((16, 16, 8, 1),),
    },
    "token_gradient_diagonal": {
        64: ((16, 32, 8, 1),),
        256: ((16, 16, 8, 1),),
    },
    "near_field_output": {64: ((16, 64, 4, 1),)},
    "near_field_gradient": {64: ((16, 64, 4, 1),)},
    "landmark_weights": HALF["landmark_weights"],
    "nearest_landmarks": {
        128: ((16, 32, 4, 1),),
        256: ((16, 16, 8, 1),),
    },
    "cluster_sums": {
        128: ((32, 32, 4, 2),),
        256: ((16, 16, 8, 1),),
    },
    "gaussian_kernel": {256: ((32, 32, 4, 1),)},
    "gaussian_kernel_gradient": HALF["gaussian_kernel_gradient"],
    "newton": {
        32: ((32, 32, 4, 1),),
        128: ((32, 32, 8, 1),),
    },
    "middle_factor": {
        64: ((64, 64, 4, 1),),
        128: ((128, 128, 16, 1),),
    },
    "middle_factor_gradient": {
        64: ((32, 32, 4, 1),),
        256: ((32, 32, 8, 1),),
    },
}
# Compute capability 9, whose groups of four warps multiply 64 rows at once and take factors from
# shared memory as it stands. Chosen by their times on an H200, where 64 rows for four warps are
# nearly always the fastest. There, Triton 3.6 compiles some tiles of the gradients wrongly, or so
# that they read shared memory out of bounds: tiles of 16 or 32 tokens and 64 landmarks with one
# stage, for a near field also with more, and for a diagonal also those of several blocks.
HALF_ON_WARP_GROUPS: Table = {
    "tokens_to_landmarks": {
        64: ((64, 64, 4, 3), (64, 128, 4, 3), (64, 64, 4, 3)),
        128: ((64, 64, 4, 3),),
        256: ((32, 64, 4, 2),),
    },
    "landmarks_to_tokens": {
        64: ((64, 64, 4, 3), (64, 128, 4, 3), (128, 64, 4, 2)),
        256: ((64, 64, 4, 2),),
    },
    "landmarks_to_tokens_diagonal": {
        64: ((64, 64, 4, 3, 168), (128, 128, 8, 1), (64, 64, 4, 2)),
        128: ((64, 64, 4, 2), (128, 128, 8, 1), (64, 64, 4, 2)),
        256: ((64, 64, 4, 1),),
    },
    "quotient_gradient": {
        128: ((32, 64, 4, 2),),
        256: ((32, 64, 4, 2),),
    },
    "quotient_gradient_diagonal": {
        64: ((32, 64, 4, 3), (32, 128, 8, 3)),
        128: ((32, 64, 4, 2), (32, 128, 8, 1)),
        256: ((32, 64, 4, 2),),
    },
    "token_gradient": {
        64: ((32, 64, 4, 3), (64, 64, 4, 2)),
        128: ((64, 64, 4, 2),),
    },
    "token_gradient_diagonal": {
        64: ((32, 64, 4, 3), (64, 128, 8, 2), (64, 64, 4, 2)),
        128: ((32, 64, 4, 3), (64, 64, 4, 1)),
    },
    "near_field_output": {
        64: ((64, 64, 4, 1), (16, 128, 8, 1)),
        128: ((64, 64, 4, 1),),
    },
    "near_field_gradient": {
        64: ((64, 64, 4, 1), (16, 128, 8, 1)),
        128: ((64, 64, 8, 1),),
    },
    "landmark_weights": {128: ((64, 64, 8, 1),)},
    "nearest_landmarks": {128: ((64, 64, 4, 2),)},
}
FLOAT32_ON_WARP_GROUPS: Table = {
    "tokens_to_landmarks": {
        64: ((64, 64, 4, 2), (64, 128, 8, 2)),
        128: ((64, 64, 4, 1),),
    },
    "landmarks_to_tokens": {
        64: ((64, 64, 4, 2), (128, 64, 8, 2)),
        128: ((64, 64, 4, 2),),
    },
    "landmarks_to_tokens_diagonal": {
        64: ((64, 64, 4, 1),),
        128: ((64, 64, 4, 1),),
    },
    "quotient_gradient": {
        64: ((32, 64, 4, 1),),
        128: ((32, 64, 4, 1),),
    },
    "quotient_gradient_diagonal": {
        64: ((32, 64, 4, 1), (32, 128, 8, 1)),
        128: ((16, 64, 4, 1),),
    },
    "token_gradient": {
        64: ((32, 64, 4, 1),),
        128: ((32, 32, 4, 1),),
    },
    "token_gradient_diagonal": {
        64: ((32, 64, 4, 1),),
        128: ((32, 16, 4, 1),),
    },
    "nearest_landmarks": {128: ((64, 64, 4, 2),)},
    "newton": {64: ((64, 64, 4, 1),)},
    "middle_factor": {64: ((64, 64, 2, 1),)},
}
# Compute capability 10, whose matrix units keep their sums in a memory of their own.
HALF_ON_TENSOR_MEMORY: Table = {
    "quotient_gradient": {64: ((32, 64, 4, 1),)},
    "token_gradient": {
        64: ((32, 64, 8, 1), (32, 64, 4, 1)),
        128: ((32, 32, 4, 1), (16, 16, 4, 1)),
    },
}
_HALF_BY_GENERATION = {9: HALF_ON_WARP_GROUPS, 10: HALF_ON_TENSOR_MEMORY}
_FLOAT32_BY_GENERATION = {9: FLOAT32_ON_WARP_GROUPS}


@functools.lru_cache(maxsize=1024)
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
    table, by_generation = HALF, _HALF_BY_GENERATION
    if dtype == torch.float32:
        table, by_generation = FLOAT32, _FLOAT32_BY_GENERATION
    widths = table[kernel] | by_generation.get(device.generation, {}).get(kernel, {})
    features = max(d, d_v)
    entries = widths[min(width for width in widths if features <= width)]
    block = block_of(m)
    of_one_block = (entry for entry in entries if block <= entry[1])
    chosen = Configuration(*next(of_one_block, entries[-1]))
    return chosen._replace(landmarks=min(block, chosen.landmarks))
