"""The files of one run: a JSON file of measurements, and figures under the same name."""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common.environment import Environment, describe_environment
from benchmarks.common.figures import Panels, write_panels
from benchmarks.common.progress import terminal


@dataclass(frozen=True)
class Report:
    """The options and the machine of one run of ``python -m benchmarks.<benchmark>``."""

    benchmark: str
    options: dict[str, Any]
    environment: Environment
    command: str
    folder: Path
    console: Console = field(default_factory=terminal)

    @classmethod
    def of(cls, benchmark: str, args: argparse.Namespace, argv: list[str] | None) -> "Report":
        """A report of the parsed command line."""
        words = sys.argv[1:] if argv is None else argv
        return cls(
            benchmark=benchmark,
            options={k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
            environment=describe_environment(args.device, args.dtype),
            command=shlex.join(["python", "-m", f"benchmarks.{benchmark}", *words]),
            folder=args.out,
        )

    def finish(
        self,
        tables: Iterable[Table],
        results: dict[str, Any],
        *,
        interrupted: bool = False,
        panels: Panels | None = None,
        together: Sequence[str] = (),
    ) -> None:
        """Prints the tables and writes the files.

        Args:
            tables: to print.
            results: to write to ``measurements/``; numbers that are not finite become null.
            interrupted: whether some measurements are missing.
            panels: to write to ``figures/``, each as a file.
            together: the panels that the main figure shows side by side.
        """
        for table in tables:
            self.console.print(table)
        paths = [self.write(results, interrupted=interrupted)]
        if panels:
            cuda = "_cuda" if self.environment.device == "cuda" else ""
            stem = self.folder / "figures" / f"{self.benchmark}{cuda}"
            paths += write_panels(panels, together, stem, description=self.environment.line())
        self.console.print(self.environment.line(), style="dim")
        self.console.print("wrote " + ", ".join(map(str, paths)))
        self.console.print(f"repeat with: {self.command}", soft_wrap=True)

    @property
    def measurements(self) -> Path:
        """The JSON file."""
        name = f"{self.benchmark}_{self.environment.device}_{self.environment.dtype}.json"
        return self.folder / "measurements" / name

    def write(self, results: dict[str, Any], *, interrupted: bool) -> Path:
        """Writes the JSON file alone, see ``finish``; returns its path."""
        content = {
            "benchmark": self.benchmark,
            "command": self.command,
            "options": self.options,
            "environment": asdict(self.environment),
            "interrupted": interrupted,
            **results,
        }
        path = self.measurements
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False)
        partial = path.with_suffix(".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
        return path


def new_table(title: str, *headings: str, left: int = 1) -> Table:
    """A table whose first ``left`` columns are text, and the others numbers."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < left else "right", no_wrap=i < left)
    return table


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
