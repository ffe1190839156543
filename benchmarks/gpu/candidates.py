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

# By variant and landmarks: tokens, landmarks, warps and stages of tiles. Of several blocks of
# landmarks the last is not full: a fault may show there alone.
_GRIDS: dict[tuple[str, int], tuple[tuple[int, ...], ...]] = {
    ("gradient", 64): ((32, 64), (64,), (4, 8), (1, 2, 3)),
    ("gradient, diagonal", 64): ((16, 32, 64), (64,), (4, 8), (1, 2, 3)),
    ("quotient gradient, diagonal", 64): ((32, 64), (64,), (4, 8), (1, 2, 3)),
    ("output, diagonal", 64): ((64, 128), (64,), (4, 8), (1, 2, 3)),
    ("output", 64): ((64, 128), (64,), (4, 8), (2, 3)),
    ("sums with ones", 64): ((64, 128), (64,), (4, 8), (2, 3, 4)),
    ("gradient, diagonal and weights", 64): ((16, 32), (64,), (4, 8), (1,)),
    ("gradient, exact normalized", 1000): ((32, 64), (32, 64), (4, 8), (1, 2)),
    ("gradient", 200): ((32, 64), (32, 64), (4, 8), (1, 2)),
    ("gradient, diagonal", 200): ((16, 32, 64), (32, 64), (4,), (1, 2)),
    ("quotient gradient, diagonal", 200): ((32, 64), (32, 64), (4,), (1, 2)),
    ("output, diagonal", 200): ((32, 64), (32, 64), (4,), (1, 2, 3)),
    ("output, exact normalized", 1000): ((64, 128), (64,), (4, 8), (1, 2, 3)),
    ("middle factor", 64): ((32, 64), (64,), (4, 8), (1,)),
    ("middle factor", 128): ((16, 32, 64, 128), (128,), (4, 8), (1,)),
    ("middle factor gradient", 128): ((16, 32, 64), (128,), (4, 8), (1,)),
    ("middle factor gradient", 64): ((32, 64), (64,), (4, 8), (1,)),
    ("weights, token", 64): ((16, 32, 64), (64,), (4, 8), (1,)),
    ("weights gradient, token", 64): ((16, 32, 64), (64,), (4, 8), (1,)),
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

    def write() -> None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")

    for case, tile, fault in checked(_candidates(args.variants), args.processes):
        found.append(
            {"variant": case.variant, "landmarks": case.landmarks, "tile": tile, "fault": fault}
        )
        print(found[-1], flush=True)
        write()
    for cell in found:
        if cell["fault"] is None:
            cell["seconds"] = seconds(_case(cell["variant"], cell["landmarks"]), cell["tile"])
            print(cell, flush=True)
            write()


def _candidates(parts: list[str] | None) -> Iterable[tuple[Case, Tile | None]]:
    for (variant, landmarks), grid in _GRIDS.items():
        if parts is None or any(part in variant for part in parts):
            case = _case(variant, landmarks)
            yield case, None
            for tokens, block, warps, stages in product(*grid):
                yield case, (tokens, block, warps, stages)


def _case(variant: str, landmarks: int) -> Case:
    return Case(variant, 64, landmarks)


if __name__ == "__main__":
    main()
