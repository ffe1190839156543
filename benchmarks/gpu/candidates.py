"""Tries tiles that may be better than those of the table, and says which are right and how fast."""

import argparse
import json
import os
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.kernels.cases import Case
from benchmarks.kernels.trial import Tile, checked, seconds

# Tokens, landmarks, warps and stages of tiles. Of several blocks of landmarks the last is not full:
# a fault may show there alone.
_GRIDS: dict[Case, tuple[tuple[int, ...], ...]] = {
    Case("sums with ones", 64, 64): ((64, 128), (64,), (4, 8), (2, 3, 4)),
    Case("output", 64, 64): ((64, 128), (64,), (4, 8), (2, 3)),
    Case("output, diagonal", 64, 64): ((64, 128), (64,), (4, 8), (1, 2, 3)),
    Case("quotient gradient, diagonal", 64, 64): ((32, 64), (64,), (4, 8), (1, 2, 3)),
    Case("gradient", 64, 64): ((32, 64), (64,), (4, 8), (1, 2, 3)),
    Case("gradient, diagonal", 64, 64): ((16, 32, 64), (64,), (4, 8), (1, 2, 3)),
    Case("gradient, diagonal and weights", 64, 64): ((16, 32), (64,), (4, 8), (1,)),
    Case("sums with ones", 64, 128): ((32, 64), (128,), (4, 8), (2, 3)),
    Case("output", 64, 128): ((64, 128), (128,), (4, 8), (2, 3)),
    Case("output, diagonal", 64, 128): ((32, 64, 128), (128,), (4, 8), (1, 2)),
    Case("quotient gradient, diagonal", 64, 128): ((16, 32, 64), (128,), (8,), (1, 2, 3)),
    Case("gradient", 64, 128): ((32, 64), (128,), (4, 8), (1, 2)),
    Case("gradient, diagonal", 64, 128): ((16, 32, 64), (128,), (4, 8), (1, 2)),
    Case("output, diagonal", 64, 200): ((32, 64, 128), (32, 64, 128), (4, 8), (1, 2)),
    Case("quotient gradient, diagonal", 64, 200): ((32, 64), (32, 64, 128), (4, 8), (1, 2, 3)),
    Case("gradient", 64, 200): ((32, 64), (32, 64), (4, 8), (1, 2)),
    Case("gradient, diagonal", 64, 200): ((16, 32, 64), (32, 64), (4, 8), (1, 2)),
    Case("output, exact normalized", 64, 1000): ((64, 128), (64,), (4, 8), (1, 2, 3)),
    Case("gradient, exact normalized", 64, 1000): ((32, 64), (32, 64), (4, 8), (1, 2)),
    Case("sums with ones", 128, 64): ((32, 64), (64,), (4, 8), (2, 3)),
    Case("output", 128, 64): ((64, 128), (64,), (4, 8), (2, 3)),
    Case("output, diagonal", 128, 64): ((32, 64), (64,), (4, 8), (1, 2, 3)),
    Case("quotient gradient, diagonal", 128, 64): ((32, 64), (64,), (4, 8), (1, 2)),
    Case("gradient", 128, 64): ((32, 64), (64,), (4, 8), (2, 3)),
    Case("gradient, diagonal", 128, 64): ((16, 32), (64,), (4, 8), (1, 2, 3)),
    Case("gradient, diagonal", 128, 128): ((16, 32, 64), (32, 64), (4, 8), (1, 2)),
    Case("sums with ones", 64, 64, "float32"): ((32, 64), (64,), (4, 8), (2,)),
    Case("output", 64, 64, "float32"): ((32, 64), (64,), (4, 8), (1, 2)),
    Case("output, diagonal", 64, 64, "float32"): ((32, 64), (64,), (4, 8), (1,)),
    Case("quotient gradient, diagonal", 64, 64, "float32"): ((32, 64), (64,), (4, 8), (1, 2)),
    Case("gradient", 64, 64, "float32"): ((16, 32), (64,), (4, 8), (1, 2)),
    Case("gradient, diagonal", 64, 64, "float32"): ((16, 32), (64,), (4, 8), (1,)),
    Case("nearest", 64, 64): ((32, 64, 128), (64,), (4, 8), (2, 3)),
    Case("middle factor", 64, 64): ((64,), (64,), (2, 4, 8), (1,)),
    Case("middle factor", 64, 128): ((128,), (128,), (8, 16), (1,)),
    Case("middle factor gradient", 64, 64): ((32, 64), (64,), (4, 8), (1,)),
    Case("middle factor gradient", 64, 128): ((16, 32, 64), (128,), (4, 8), (1,)),
    Case("weights, token", 64, 64): ((16, 32, 64), (64,), (4, 8), (1,)),
    Case("weights gradient, token", 64, 64): ((16, 32, 64), (64,), (4, 8), (1,)),
    Case("weights gradient, token", 64, 128): ((16, 32, 64), (128,), (4, 8), (1,)),
}


def main(argv: list[str] | None = None) -> None:
    """Tries all and writes each before the next begins."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda",), default="cuda", help="to measure")
    parser.add_argument("--variants", nargs="+", help="a part of their names")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that compile")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    args = parser.parse_args(argv)
    found: list[dict[str, Any]] = []

    def write(cell: dict[str, Any]) -> None:
        print(cell, flush=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")

    right = []
    for case, tile, fault in checked(_candidates(args.variants), args.processes):
        names = ("variant", "features", "landmarks", "dtype")
        cell = {name: getattr(case, name) for name in names} | {"tile": tile, "fault": fault}
        found.append(cell)
        write(cell)
        if fault is None:
            right.append((case, tile, cell))
    for case, tile, cell in right:
        cell["seconds"] = seconds(case, tile)
        write(cell)


def _candidates(parts: list[str] | None) -> Iterable[tuple[Case, Tile | None]]:
    for case, grid in _GRIDS.items():
        if parts is None or any(part in str(case) for part in parts):
            yield case, None
            for tokens, block, warps, stages in product(*grid):
                yield case, (tokens, block, warps, stages)


if __name__ == "__main__":
    main()
