"""Searches for better tiles of one kernel than those in softattn.kernels.configurations.

On a GPU every candidate is checked against the smallest tile, and timed if it is right. Without one
it is compiled for a target and ranked by its resources: bytes of stack first, where registers did
not suffice, then registers. Tiles of the table's own size are marked.
"""

import argparse
import os
from dataclasses import dataclass, replace
from itertools import product

from rich.table import Table

from benchmarks.common.arguments import HelpFormatter, positive_int
from benchmarks.common.progress import counted_steps, terminal
from benchmarks.common.quantities import bytes_text, seconds_text
from benchmarks.common.report import new_table
from benchmarks.kernels.cases import DTYPES, VARIANTS, Case
from benchmarks.kernels.compilation import (
    TARGETS,
    Resources,
    Target,
    compiler_processes,
    launches,
    submit,
)
from benchmarks.kernels.trial import Tile, checked, seconds


@dataclass(frozen=True)
class Candidate:
    """A tile, its resources, and on a GPU the time of a call in seconds."""

    tile: Tile
    resources: list[Resources]
    seconds: float | None = None

    @property
    def cost(self) -> tuple[float, ...]:
        """The key that candidates are sorted by."""
        stack = sum(resources.stack for resources in self.resources)
        registers = max(resources.registers for resources in self.resources)
        return (self.seconds,) if self.seconds is not None else (stack, registers)


def main(argv: list[str] | None = None) -> None:
    """Compiles or times all candidates and prints them, the best first."""
    args = _parser().parse_args(argv)
    case = Case(args.variant, args.features, args.landmarks, args.dtype)
    target = TARGETS[args.target]
    own = tuple(launches(case, target)[0].tile)
    tiles = list(product(args.tokens, args.tile_landmarks, args.warps, args.stages))
    found = _compiled(case, target, tiles)
    if args.device == "cuda":
        found = _timed(case, found)
    found.sort(key=lambda candidate: candidate.cost)
    terminal().print(_table(f"{case} on {target.name}", found, own))


def _compiled(case: Case, target: Target, tiles: list[Tile]) -> list[Candidate]:
    """The tiles that the compiler takes and whose programs fit the target."""
    found = []
    console = terminal()
    with counted_steps(console, str(case), len(tiles)) as steps, compiler_processes() as executor:
        compiled = {tile: submit(executor, case, target, tile) for tile in tiles}
        for tile, future in compiled.items():
            steps.describe(str(tile))
            try:
                candidate = Candidate(tile, future.result())
                if max(r.shared_memory for r in candidate.resources) <= target.shared_memory:
                    found.append(candidate)
            except Exception as error:  # whatever a compiler raises
                console.print(f"{tile}: {str(error).splitlines()[0]}")
            steps.advance()
    return found


def _timed(case: Case, candidates: list[Candidate]) -> list[Candidate]:
    """Those that are right, with their times."""
    wanted = [(case, candidate.tile) for candidate in candidates]
    right = []
    for candidate, (_, tile, fault) in zip(
        candidates, checked(wanted, os.cpu_count() or 1), strict=True
    ):
        if fault is None:
            right.append(candidate)
        else:
            terminal().print(f"{tile}: {fault}")
    return [replace(candidate, seconds=seconds(case, candidate.tile)) for candidate in right]


def _table(title: str, candidates: list[Candidate], own: tuple[int, ...]) -> Table:
    headings = ("tokens", "landmarks", "warps", "stages", "time", "registers", "stack", "shared")
    table = new_table(title, *headings, left=0)
    for candidate in candidates:
        mark = " *" if candidate.tile[:2] == own[:2] else ""
        table.add_row(
            f"{candidate.tile[0]}{mark}",
            *map(str, candidate.tile[1:]),
            "" if candidate.seconds is None else seconds_text(candidate.seconds),
            " ".join(str(r.registers) for r in candidate.resources),
            " ".join(str(r.stack) for r in candidate.resources),
            " ".join(bytes_text(r.shared_memory) for r in candidate.resources),
        )
    table.caption = "* a tile of the table's size"
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda times")
    parser.add_argument("--target", choices=tuple(TARGETS), default="sm_90", help="to compile for")
    parser.add_argument("--variant", choices=tuple(VARIANTS), default="gradient")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    parser.add_argument("--features", type=positive_int, default=64, help="D and D_v")
    parser.add_argument("--landmarks", type=positive_int, default=64, help="m")
    sizes = (("tokens", (16, 32, 64)), ("tile-landmarks", (32, 64)), ("warps", (4, 8)))
    for name, default in (*sizes, ("stages", (1, 2, 3))):
        parser.add_argument(f"--{name}", type=positive_int, nargs="+", default=list(default))
    return parser


if __name__ == "__main__":
    main()
