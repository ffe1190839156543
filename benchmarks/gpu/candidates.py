"""Times tiles that may be better than those of the table, by the replay of a CUDA graph."""

import argparse
import json
from pathlib import Path

from benchmarks.kernels.cases import Case
from benchmarks.kernels.compilation import with_tile

_TOKENS = 2**19
# Found by their compiled code; the table's own is the first of each.
CANDIDATES: dict[str, tuple[tuple[int, int, int, int] | None, ...]] = {
    "gradient": (None, (64, 64, 4, 1), (32, 64, 4, 1)),
    "gradient, diagonal": (None, (32, 64, 4, 2), (16, 64, 4, 1)),
    "quotient gradient, diagonal": (None, (64, 64, 4, 2), (32, 64, 4, 2)),
    "sums with ones": (None, (128, 64, 4, 2), (64, 64, 4, 4)),
    "answer, diagonal": (None, (64, 64, 4, 2), (128, 64, 8, 2)),
}


def main(argv: list[str] | None = None) -> None:
    """Times all and writes each before the next begins."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda",), default="cuda", help="to measure")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    args = parser.parse_args(argv)
    found = []
    for variant, tiles in CANDIDATES.items():
        for tile in tiles:
            cell = {"variant": variant, "tile": tile}
            found.append(cell | timed(Case(variant, 64, 64, tokens=_TOKENS, device="cuda"), tile))
            print(found[-1], flush=True)
            args.out.write_text(json.dumps(found, indent=1) + "\n")


def timed(case: Case, tile: tuple[int, int, int, int] | None) -> dict[str, object]:
    """Seconds of a call with a tile, or with the table's for None; or why it does not run."""
    from contextlib import nullcontext

    from triton.testing import do_bench_cudagraph

    try:
        with nullcontext() if tile is None else with_tile(tile):
            call = case.call()
            call()
            milliseconds = do_bench_cudagraph(call, return_mode="median")
    except Exception as error:  # a tile that the compiler or the device refuses
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return {"seconds": milliseconds / 1e3}


if __name__ == "__main__":
    main()
