"""A pass over the tokens: how it is cut into programs, and the arguments of every such kernel."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softattn.kernels import configurations, devices, launching
from softattn.kernels.launching import block_of, ceil_div, padding_argument, rows_argument

# A multiprocessor gets many programs of some tiles each, so that none of them waits long for the
# last one. Where tiles are few it gets few programs, whose partial sums cost more than the wait.
_FEWEST_PROGRAMS, _MOST_PROGRAMS = 3, 12
_TILES_OF_PROGRAM = 16


class Stretches(NamedTuple):
    """The tokens of a head cut into stretches, one for each program.

    number: how many.
    length: tokens of each, a multiple of the tile's.
    """

    number: int
    length: int


class TokenPass:
    """A pass over tokens and landmarks with the tiles of one entry of the table.

    Args:
        entry: a name in the table of ``configurations``.
        tokens: X, (batch, heads, n, d).
        landmarks: L, (batch, heads, m, d); in exact attention the keys.
        d_v: features of values.
        rate: s log₂(e) / 2.
        center: (batch, heads, d), subtracted from tokens and landmarks; or None.
        padding: (batch, n), True at padded tokens; or None.
    """

    def __init__(
        self,
        entry: str,
        tokens: Tensor,
        landmarks: Tensor,
        d_v: int,
        *,
        rate: float,
        center: Tensor | None,
        padding: Tensor | None,
    ) -> None:
        self.batch, self.heads, self.n, self.d = tokens.shape
        self.m, self.d_v = landmarks.shape[2], d_v
        self.dtype = tokens.dtype
        self._tensors = {
            **rows_argument("x", tokens),
            **rows_argument("l", landmarks),
            "center_ptr": center,
            "padding_ptr": padding_argument(padding),
        }
        self._rate = rate
        self._torch_device = tokens.device
        self._device = devices.device_of(tokens.device)
        self._tile = configurations.choose(entry, self.d, d_v, self.m, self.dtype, self._device)

    @property
    def blocks(self) -> int:
        """Blocks of landmarks, at least 1."""
        return max(ceil_div(self.m, self._tile.landmarks), 1)

    def stretches(self, blocks: int = 1) -> Stretches:
        """Stretches for a grid that has ``blocks`` programs for each of them."""
        others = max(self.batch * self.heads * blocks, 1)
        tiles = max(ceil_div(self.n, self._tile.tokens), 1)
        multiprocessors = self._device.multiprocessors
        programs = tiles * others / _TILES_OF_PROGRAM / multiprocessors
        programs = min(max(programs, _FEWEST_PROGRAMS), _MOST_PROGRAMS)
        wanted = math.ceil(multiprocessors * programs / others)
        length = ceil_div(tiles, min(wanted, tiles))
        return Stretches(ceil_div(tiles, length), length * self._tile.tokens)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory for an output whose first dimensions are batch and heads."""
        shape = (self.batch, self.heads, *shape)
        return torch.empty(shape, device=self._torch_device, dtype=dtype)

    def launch(
        self, kernel: Any, stretches: Stretches, blocks: int = 1, **arguments: object
    ) -> None:
        """Runs ``kernel`` for each pair, stretch and block.

        ``arguments`` are those that not all kernels over tokens have.
        """
        arguments.update(
            self._tensors,
            n=self.n,
            m=self.m,
            heads=self.heads,
            stretches=stretches.number,
            length=stretches.length,
            rate=self._rate,
            D=self.d,
            D_V=self.d_v,
            BLOCK_N=self._tile.tokens,
            BLOCK_M=self._tile.landmarks,
            BLOCK_D=block_of(self.d),
            BLOCK_V=block_of(self.d_v),
            PRECISION=self._device.precision,
        )
        grid = (self.batch * self.heads * stretches.number * blocks,)
        launching.launch(kernel, grid, arguments, self._tile)
