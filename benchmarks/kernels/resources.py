"""Registers, stack, shared memory and matrix instructions of every kernel on every target.

Compiles the kernels, which needs no GPU, and writes the table between two marks in
docs/kernels.md. Ctrl-C leaves the page as it was.
"""

import argparse
from itertools import zip_longest
from pathlib import Path

from benchmarks.common.progress import counted_steps, terminal
from benchmarks.common.report import new_table
from benchmarks.kernels.cases import Case
from benchmarks.kernels.compilation import TARGETS, Resources, compiler_processes, submit

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"
BEGIN, END = "<!-- resources: begin -->", "<!-- resources: end -->"
HEADINGS = ("launched for", "tile", "warps", *TARGETS)

CASES = tuple(
    Case(variant, features, 64, dtype)
    for features, dtype in ((64, "bfloat16"), (128, "bfloat16"), (256, "bfloat16"), (64, "float32"))
    for variant in (
        "sums",
        "output",
        "output, diagonal",
        "output, exact normalized",
        "quotient gradient, diagonal",
        "gradient",
        "gradient, diagonal",
        "block gradient",
    )
)
CASES += tuple(
    Case(variant, features, 64, dtype)
    for features, dtype in ((64, "bfloat16"), (128, "bfloat16"), (64, "float32"))
    for variant in ("near field", "near field gradient")
)
CASES += tuple(Case("middle factor", 64, m, "float32") for m in (64, 128))
CASES += tuple(Case("newton", size, size, "float32") for size in (32, 64, 128))


def main(argv: list[str] | None = None) -> None:
    """Compiles, prints the table and writes it into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE, help="where the marks are")
    parser.add_argument(
        "--variants", nargs="+", metavar="VARIANT", help="what to compile; all by default"
    )
    args = parser.parse_args(argv)
    cases = [case for case in CASES if args.variants is None or case.variant in args.variants]
    console = terminal()
    table = new_table("registers / stack / shared memory / matrix instructions", *HEADINGS)
    rows = []
    with (
        counted_steps(console, "compile", len(cases) * len(TARGETS)) as steps,
        compiler_processes() as executor,
    ):
        compiled = {
            case: [submit(executor, case, target) for target in TARGETS.values()] for case in cases
        }
        for case, futures in compiled.items():
            steps.describe(str(case))
            found = []
            for future in futures:
                found.append(future.result())
                steps.advance()
            rows += rows_of(case, found)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if steps.interrupted:
        console.print("interrupted: the page is as it was")
        return
    write(args.page, rows)
    console.print(f"written into {args.page}")


def rows_of(case: Case, by_target: list[list[Resources]]) -> list[tuple[str, ...]]:
    """One row for each kernel that the case launches on any of the targets."""
    rows = []
    for kernels in zip_longest(*by_target):
        launched = [resources for resources in kernels if resources is not None]
        tiles = {"×".join(map(str, resources.tile)) for resources in launched}
        warps = {str(resources.warps) for resources in launched}
        rows.append(
            (
                f"{case.variant}, D = {case.features}, m = {case.landmarks}, {case.dtype}",
                " or ".join(sorted(tiles)),
                " or ".join(sorted(warps)),
                *map(_text, kernels),
            )
        )
    return rows


def write(page: Path, rows: list[tuple[str, ...]]) -> None:
    """Puts the table between the marks of ``page``.

    Raises:
        ValueError: the page has no marks.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} must hold {BEGIN} and after it {END}")
    lines = [f"| {' | '.join(HEADINGS)} |", "|---|---|---:|" + "---|" * len(TARGETS)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    page.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}")


def _text(resources: Resources | None) -> str:
    if resources is None:
        return ""
    return (
        f"{resources.registers} / {resources.stack} / {resources.shared_memory / 1024:.0f} KiB / "
        f"{resources.matrix_instructions}"
    )


if __name__ == "__main__":
    main()
