"""The results of the quickstart, collected over its parts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.progress import Progress


@dataclass(frozen=True)
class Report:
    """The results so far, and where they go.

    out: folder of the pictures.
    quick: whether this is a smoke run, whose numbers mean nothing.
    seeds: trainings of each network.
    progress: bars on the screen.
    numbers: content of results.json, by part of the quickstart.
    pictures: files drawn so far.
    """

    out: Path
    quick: bool
    seeds: int
    progress: Progress
    numbers: dict[str, Any] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)

    def print(self, *content: RenderableType) -> None:
        """Prints above the bars."""
        self.progress.console.print(*content, "")

    def new_picture(self, name: str) -> Path:
        """The path of the next picture."""
        self.pictures.append(self.out / name)
        return self.pictures[-1]
