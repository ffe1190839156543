"""What the parts of the quickstart share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.progress import Progress


@dataclass(frozen=True)
class Report:
    """Where results go.

    out: the folder of the pictures.
    quick: whether this is a smoke run, whose numbers mean nothing.
    progress: the bars on the screen.
    numbers: by part of the quickstart, as they will stand in results.json.
    pictures: those drawn so far.
    """

    out: Path
    quick: bool
    progress: Progress
    numbers: dict[str, Any] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)

    def print(self, *content: RenderableType) -> None:
        """Prints above the bars."""
        self.progress.console.print(*content, "")

    def new_picture(self, name: str) -> Path:
        """Where to draw the next picture."""
        self.pictures.append(self.out / name)
        return self.pictures[-1]
