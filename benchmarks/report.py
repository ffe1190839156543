"""What a command leaves behind: a JSON file and a figure under one name."""

import argparse
import json
import math
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.environment import Environment, describe_environment


@dataclass(frozen=True)
class Report:
    """The results of one run of ``python -m benchmarks.<benchmark>``, and where they go."""

    benchmark: str
    options: dict[str, Any]
    environment: Environment
    command: str
    folder: Path

    @property
    def stem(self) -> str:
        """The name of the files, without their endings."""
        return f"{self.benchmark}_{self.environment.device}_{self.environment.dtype}"

    def write_json(self, results: dict[str, Any], *, interrupted: bool) -> Path:
        """Writes the results below the options and the environment; numbers not finite are null."""
        content = {
            "benchmark": self.benchmark,
            "command": self.command,
            "options": self.options,
            "environment": asdict(self.environment),
            "interrupted": interrupted,
            **results,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.stem}.json"
        text = json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
        return path

    def write_figure(self, figure: Figure) -> list[Path]:
        """Writes the figure as PNG and SVG."""
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = [self.folder / f"{self.stem}.{ending}" for ending in ("png", "svg")]
        for path in paths:
            figure.savefig(path, dpi=150)
        return paths

    def announce(self, console: Console, paths: list[Path]) -> None:
        """Says what was written and how to repeat it."""
        console.print(self.environment.line(), style="dim")
        console.print("wrote " + ", ".join(map(str, paths)))
        console.print(f"repeat with: {self.command}", soft_wrap=True)


def start_report(benchmark: str, args: argparse.Namespace, argv: list[str] | None) -> Report:
    """A report of the parsed command line."""
    words = sys.argv[1:] if argv is None else argv
    return Report(
        benchmark=benchmark,
        options={k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        environment=describe_environment(args.device, args.dtype),
        command=shlex.join(["python", "-m", f"benchmarks.{benchmark}", *words]),
        folder=args.out,
    )


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
